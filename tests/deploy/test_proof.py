"""What is called proven and what is not, and the cause that is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import image, pspnet, pspnet_config, randomise_norms
from mmengine.config import Config
from tool_runs import run_tool
from torch import nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.block import named_blocks
from repvgg_mm.convert.compare import TOLERANCE, compare_models
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import convert_checkpoint
from repvgg_mm.deploy.proof import prove
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack
X = image(1, 3, 64, 64, dtype=torch.float32)
LARGE = 1e4


def amplifying(model: nn.Module) -> nn.Module:
    """`LARGE` in one branch and -`LARGE` in the other: float32 keeps 3 decimals of the sum, in either form."""
    for _, block in named_blocks(model):
        block.branch_3x3.norm.running_mean += LARGE
        block.branch_1x1.norm.running_mean -= LARGE * scale_of(block.branch_3x3) / scale_of(block.branch_1x1)
    return model


def scale_of(branch: nn.Module) -> torch.Tensor:
    return branch.norm.weight.detach() / (branch.norm.running_var + branch.norm.eps).sqrt()


def test_a_right_conversion_needs_no_note():
    model = pspnet()
    errors = prove(model, whole_model_convert(model), X)
    assert errors.worst <= TOLERANCE and errors.notes == () and errors.remarks() == []


def test_rounding_that_a_network_amplifies_is_no_fault():
    model = amplifying(pspnet())
    deploy = whole_model_convert(model)
    assert compare_models(model, deploy, X).worst > 10 * TOLERANCE
    errors = prove(model, deploy, X)
    assert 0 < errors.worst < 1e-9
    assert errors.remarks()[0].startswith('Compared in float64, because this network amplifies the rounding of float32')
    assert next(model.parameters()).dtype == torch.float32


def test_what_a_conversion_writes_says_so(tmp_path):
    torch.manual_seed(0)
    cfg = Config(dict(model=pspnet_config('A0'), default_scope='mmseg'))
    meta = convert_checkpoint(cfg, save(amplifying(randomise_norms(build_model(cfg))), tmp_path), (64, 64)).meta
    assert meta['compared'].startswith('raw outputs. Compared in float64, because') and meta['not_compared'] == []
    meta = convert_checkpoint(cfg, save(randomise_norms(build_model(cfg)), tmp_path), (64, 64)).meta
    assert meta['compared'] == 'raw outputs.' and meta['worst_relative_error'] < TOLERANCE


def save(model: nn.Module, folder: Path) -> Checkpoint:
    torch.save(model.state_dict(), folder / 'trained.pth')
    return Checkpoint.read(folder / 'trained.pth')


@pytest.mark.parametrize('change', [lambda model: model, amplifying])
def test_a_deploy_form_that_is_wrong_is_refused(change):
    model = change(pspnet())
    wrong = whole_model_convert(model)
    wrong.backbone.stage_3[0].branch_reparam.bias.data += 0.5
    with pytest.raises(UserError, match=r'agree with the training form to 1e-05 relative, and .* differs by .* on an '
                                        r'input of 64x64\. Nothing was written: in float64 both forms agree to '
                                        r'\d\.\de-1\d, so the blocks are fused right, but in float32 the deploy form '
                                        r'is .* away'):
        prove(model, wrong, X)


def test_a_fault_of_the_fusing_is_not_called_rounding(monkeypatch):
    def faulty(model):
        converted = whole_model_convert(model)
        converted.backbone.stage_3[0].branch_reparam.bias.data += 0.5
        return converted

    monkeypatch.setattr('repvgg_mm.deploy.proof.whole_model_convert', faulty)
    model = pspnet()
    with pytest.raises(UserError, match=r'differs by .*Nothing was written: in float64 they differ by .* no rounding'):
        prove(model, faulty(model), X)


def test_a_value_that_is_not_finite_is_refused():
    model = pspnet()
    next(block for _, block in named_blocks(model)).branch_3x3.norm.bias.data[0] = float('nan')
    with pytest.raises(UserError, match=r'differs by inf on .* in float64 they differ by inf.*Look for NaN'):
        prove(model, whole_model_convert(model), X)


def test_values_beyond_float32_are_refused_though_float64_holds_them():
    model = pspnet()
    model.decode_head.conv_seg.weight.data *= 1e38
    deploy = whole_model_convert(model)
    assert not model.eval()(X).isfinite().all()
    with pytest.raises(UserError, match=r'differs by inf on .* is inf away from that and the training form inf'):
        prove(model, deploy, X)


@pytest.mark.parametrize('error', [RuntimeError('too small'), AssertionError('too small'), KeyError('too small')])
def test_whatever_a_model_raises_is_a_sentence(monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    model = pspnet()
    deploy = whole_model_convert(model)
    monkeypatch.setattr(model.decode_head, 'forward', fails)
    monkeypatch.setattr(model, 'extract_feat', fails)
    with pytest.raises(UserError, match=r"input of \(64, 64\), and the model cannot take it: .*too small.*--shape H W"):
        prove(model, deploy, X)


def test_models_that_do_not_run_without_data_are_proven_all_the_same():
    """Each in another of `WAYS`."""
    models = ['condinst/', 'conditional_detr/', 'panoptic_fpn/', 'decoupled-solo_r50_fpn_1x', 'n/cascade-rcnn_r']
    done = run_tool('benchmarks/every_model.py', '--toolbox', 'mmdet', '--no-export', '--only', *models)
    found = [row for row in done.stdout.splitlines() if 'mmdet: ' in row]
    rows = {row.split('/')[0].removeprefix('| mmdet: '): row for row in found}
    assert set(rows) == {'condinst', 'conditional_detr', 'panoptic_fpn', 'solo', 'cascade_rcnn'}
    assert '| predictions and the outputs of heads' in rows['condinst']
    assert '| raw outputs, with made-up data samples |' in rows['conditional_detr']
    assert '| semantic_head |' in rows['panoptic_fpn']
    for row in rows.values():
        _, _, _, float32, float64, _, failed, _, _ = (cell.strip() for cell in row.split('|'))
        assert not failed and float(float64) < 1e-10 and float(float32) < 1e-3, row
    assert 'stack trace' not in done.stdout
