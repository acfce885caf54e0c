"""Layer-wise learning rate decay in each toolbox: the rate of every parameter, from RepVGG-A0's blocks written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import TINY, TINY_SE, group_settings, pspnet
from hostile_checkpoints import shapes_model
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from pages import TEXTS, python_snippets
from tool_runs import ROOT, assert_refused, derived_config, iterations, run_peer, run_tool, small_data
from torch import nn
from torch.testing import assert_close

from repvgg_mm import UserError, read_checkpoint
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack
OURS = 'LayerDecayOptimWrapperConstructor'
RATE, LR = 0.9, 1e-3
BLOCKS = {'stage_1': 2, 'stage_2': 4, 'stage_3': 14, 'stage_4': 1}  # of A0, in table 2 of the paper
LAYERS = ['stem', *(f'{stage}.{block}' for stage, blocks in BLOCKS.items() for block in range(blocks))]
STEM = RATE**22  # below the head: the 21 blocks, and the stem itself
CASES = [('pspnet_repvgg_a0.py', -1), ('retinanet_repvgg_a0_coco.py', -1), ('retinanet_repvgg_a0_coco.py', 1)]


def factor(name: str) -> float:
    """Of the learning rate of a parameter of a model on A0."""
    for steps, layer in enumerate(reversed(LAYERS), 1):
        if name.startswith(f'backbone.{layer}.'):
            return RATE**steps
    return 1


def assert_decayed(found: dict[str, list[float]], without_decay: dict[str, list[float]]) -> None:
    """The same parameters and weight decays, and learning rates that are `factor` times those before."""
    expected = {name: [lr * factor(name), decay] for name, (lr, decay) in without_decay.items()}
    assert_close(found, expected, rtol=1e-12, atol=0)


def assert_decays_weights_as_the_recipe(found: dict[str, list[float]], weight_decay: float) -> None:
    """Of norms the weight of the identity branch alone; of deploy forms the kernels."""
    decays = {name: decay for name, (_, decay) in found.items() if name.startswith('backbone.')}
    for name, decay in decays.items():
        kept = name.endswith(('conv.weight', 'branch_norm.weight', 'branch_reparam.weight'))
        assert decay == (weight_decay if kept else 0), name
    assert set(decays.values()) == {0, weight_decay}


def load(path: str | Path, **backbone: object) -> tuple[Config, nn.Module]:
    cfg = Config.fromfile(ROOT / 'configs' / path)
    cfg.model.backbone.update(backbone, init_cfg=None)
    with torch.device('meta'):
        return cfg, build_model(cfg)


def with_decay(optim_wrapper: dict, rate: object = RATE, **paramwise: object) -> ConfigDict:
    paramwise = {**optim_wrapper.get('paramwise_cfg', {}), 'layer_decay_rate': rate, **paramwise}
    return ConfigDict(optim_wrapper, constructor=OURS, paramwise_cfg=paramwise)


def decayed(model: nn.Module, **options: object) -> OptimWrapper:
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))
    return build_optim_wrapper(model, with_decay(optim_wrapper, **options))


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('name, frozen_stages', CASES)
def test_a_segmentor_and_a_detector(name, frozen_stages, deploy):
    cfg, model = load(name, frozen_stages=frozen_stages, deploy=deploy)
    lr, weight_decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay
    before = group_settings(model, build_optim_wrapper(model, cfg.optim_wrapper))
    found = group_settings(model, build_optim_wrapper(model, with_decay(cfg.optim_wrapper)))
    assert_decayed(found, before)
    assert_decays_weights_as_the_recipe(found, weight_decay)

    rates = [rate for rate, _ in found.values()]
    lowest = STEM if frozen_stages < 0 else STEM / RATE**3  # the stem and the two blocks of stage 1 are frozen
    assert_close([min(rates), max(rates)], [lr * lowest, lr], rtol=1e-12, atol=0)
    assert {rate for name, (rate, _) in found.items() if not name.startswith('backbone.')} == {lr}


def test_the_lines_of_the_page(tmp_path):
    lines, = (code for code in python_snippets(TEXTS['docs/train.md']) if OURS in code)
    cfg, model = load(derived_config(tmp_path / 'config.py', lines, base='configs/pspnet_repvgg_a0.py'))
    found = group_settings(model, build_optim_wrapper(model, cfg.optim_wrapper))
    lr = cfg.optim_wrapper.optimizer.lr
    assert_close(found['backbone.stem.branch_3x3.conv.weight'], [lr * STEM, 1e-4], rtol=1e-12, atol=0)
    assert_decays_weights_as_the_recipe(found, 1e-4)


@pytest.mark.peers
def test_a_classifier_with_mmpretrains_constructor_and_ours():
    found = json.loads(run_peer('tests/programs/classifier_layer_decay.py', RATE).stdout.splitlines()[-1])
    assert len(found) == 2
    for form in found.values():
        before = form.pop('without')
        assert {'head.fc.weight', 'head.fc.bias'} <= set(before)
        assert sorted(form) == [OURS, 'mmpretrain.LearningRateDecayOptimWrapperConstructor']
        for constructor in form.values():
            assert_decayed(constructor, before)


def test_what_the_default_constructor_does_is_kept():
    model = pspnet(TINY_SE)
    model.auxiliary_head.conv_seg = model.decode_head.conv_seg  # shared
    paramwise = dict(
        norm_decay_mult=0.0,
        bias_lr_mult=2.0,
        bypass_duplicate=True,
        custom_keys={'branch_norm.weight': dict(decay_mult=0.5), 'auxiliary_head': dict(lr_mult=10)})
    found = group_settings(model, decayed(model, **paramwise))
    expected = {
        'backbone.stem.branch_3x3.conv.weight': [0.1 * RATE**9, 0.01],
        'backbone.stage_1.0.branch_1x1.norm.bias': [0.1 * RATE**8, 0.0],
        'backbone.stage_2.1.branch_norm.weight': [0.1 * RATE**6, 0.005],
        'backbone.stage_4.0.se_layer.conv1.conv.bias': [0.1 * 2 * RATE, 0.01],
        'decode_head.conv_seg.weight': [0.1, 0.01],
        'decode_head.conv_seg.bias': [0.1 * 2, 0.01],
        'auxiliary_head.convs.0.conv.weight': [0.1 * 10, 0.01]}
    assert_close({name: found[name] for name in expected}, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('rate', [0, -0.1, 1.01, float('nan'), None, '0.9'])
def test_the_rate_is_above_0_and_up_to_1(rate):
    with pytest.raises(UserError, match=rf'above 0 and up to 1, got paramwise_cfg\.layer_decay_rate={rate!r}\. Set it'):
        decayed(pspnet(TINY), rate=rate)
    assert {group['lr'] for group in decayed(pspnet(TINY), rate=1).optimizer.param_groups} == {0.1}


def test_without_paramwise_cfg_there_is_no_rate():
    optim_wrapper = dict(constructor=OURS, optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(UserError, match=r'up to 1, got paramwise_cfg\.layer_decay_rate=None\. Set it'):
        build_optim_wrapper(pspnet(TINY), optim_wrapper)


def test_an_optimizer_without_a_learning_rate():
    optim_wrapper = with_decay(dict(optimizer=dict(type='AdamW')))
    with pytest.raises(UserError, match=r"multiplies the learning rate.*'type': 'AdamW'.* has none\. Write its lr out"):
        build_optim_wrapper(pspnet(TINY), optim_wrapper)


def test_a_backbone_that_knows_no_depth():
    with torch.device('meta'):
        resnet = build_model(Config.fromfile(ROOT / 'benchmarks' / 'pspnet_r50.py'))
    with pytest.raises(UserError, match=r'asks model\.backbone\.get_layer_depth .* EncoderDecoder is ResNetV1c, '
                                        r'without that method\. Use a backbone that has it, such as RepVGG, or remove'):
        decayed(resnet)
    with pytest.raises(UserError, match='the backbone of this Linear is NoneType'):
        decayed(nn.Linear(2, 2))


@pytest.mark.parametrize('scope, name', [('mmseg', 'pspnet_repvgg_a0.py'), ('mmdet', 'retinanet_repvgg_a0_coco.py')])
def test_the_toolboxes_own_constructors_know_other_backbones(scope, name):
    cfg, model = load(name)
    paramwise = dict(num_layers=6, decay_rate=RATE, decay_type='layer_wise')
    optim_wrapper = dict(cfg.optim_wrapper, paramwise_cfg=paramwise,
                         constructor=f'{scope}.LearningRateDecayOptimizerConstructor')
    with pytest.raises(NotImplementedError):
        build_optim_wrapper(model, ConfigDict(optim_wrapper))


@pytest.fixture(scope='module')
def small(tmp_path_factory) -> list:
    """A training of three steps of a tiny PSPNet on generated images, up to its --cfg-options."""
    folder = tmp_path_factory.mktemp('small')
    shapes = make_shapes(folder / 'shapes', num_train=4, num_val=1, size=48)
    config = derived_config(folder / 'small.py', f'model = dict(_delete_=True, **{shapes_model()})')
    return ['tools/train.py', config, '--cfg-options', *small_data(shapes), *iterations(3),
            f'optim_wrapper.optimizer.lr={LR}', f'optim_wrapper.constructor={OURS}']


def test_the_tool_trains_with_it(small, tmp_path):
    run_tool(*small, f'optim_wrapper.paramwise_cfg.layer_decay_rate={RATE}', f'work_dir={tmp_path}')
    groups = read_checkpoint(tmp_path / 'iter_3.pth')['optimizer']['param_groups']
    rates = sorted({group['initial_lr'] for group in groups})
    expected = [LR * RATE**steps for steps in range(9, -1, -1)]  # the stem, 8 blocks, the heads
    assert_close(rates, expected, rtol=1e-12, atol=0)
    now = {group['lr'] / group['initial_lr'] for group in groups}
    assert_close(min(now), max(now))  # the schedule multiplies them all by one number
    assert max(now) < 1


def test_the_tool_tells_a_wrong_rate(small, tmp_path):
    result = run_tool(
        *small, 'optim_wrapper.paramwise_cfg.layer_decay_rate=90', f'work_dir={tmp_path}', check=False)
    assert_refused(result, 'above 0 and up to 1, got paramwise_cfg.layer_decay_rate=90. Set it to 0.9')
