"""Files of bare backbones and classifiers: every layout and form in, one out, proven or not written."""

from __future__ import annotations

import os

import pytest
import torch
from helpers import backbone
from tool_runs import run_tool

from repvgg_mm import ARCHS, RepVGG, UserError, read_checkpoint, whole_model_convert
from repvgg_mm.deploy.weight_file import convert_weight_file
from repvgg_mm.files.checkpoint import write_checkpoint
from repvgg_mm.layouts import from_native
from repvgg_mm.pretrained import unwrap

OFFICIAL = {'linear.weight': torch.randn(10, 1280), 'linear.bias': torch.randn(10)}
LINEAR = {'official': 'linear', 'timm': 'head.fc', 'native': 'head.fc'}


@pytest.fixture(scope='module')
def model():
    return backbone('A0')


@pytest.fixture(scope='module')
def files(model, tmp_path_factory):
    """The same classifier in every layout and form."""
    folder = tmp_path_factory.mktemp('files')
    for form, source in (('training', model), ('deploy', whole_model_convert(model))):
        for layout, linear in LINEAR.items():
            tensors = from_native(source.state_dict(), layout)
            if layout == 'native':
                tensors = {f'backbone.{name}': tensor for name, tensor in tensors.items()}
            tensors |= {name.replace('linear', linear): tensor for name, tensor in OFFICIAL.items()}
            torch.save(dict(state_dict=tensors) if layout == 'native' else tensors, folder / f'{layout}-{form}.pth')
    return folder


@pytest.mark.parametrize('target', LINEAR)
@pytest.mark.parametrize('source', LINEAR)
def test_every_layout_to_every_layout(files, source, target):
    converted = convert_weight_file(files / f'{source}-training.pth', 'RepVGG-A0', target)
    expected = unwrap(read_checkpoint(files / f'{target}-training.pth'))
    torch.testing.assert_close(unwrap(converted.checkpoint), expected, rtol=0, atol=0)
    assert len(converted.errors) == 4 and max(converted.errors.values()) == 0
    assert 'classifier kept; 0 left out' in converted.summary


@pytest.mark.parametrize('target', LINEAR)
@pytest.mark.parametrize('source', ['official-training', 'timm-training', 'native-deploy', 'timm-deploy'])
def test_deploy_form_is_fused_in_float64_and_rounded_last(files, model, source, target):
    found = unwrap(convert_weight_file(files / f'{source}.pth', 'A0', target, deploy=True).checkpoint)
    result = RepVGG('A0', deploy=True)
    result.load_state_dict(found)
    torch.testing.assert_close(found[f'{LINEAR[target]}.weight'], OFFICIAL['linear.weight'], rtol=0, atol=0)
    exact = backbone('A0').double()
    exact.load_state_dict(model.state_dict())
    exact = whole_model_convert(exact).float() if 'training' in source else whole_model_convert(model)
    torch.testing.assert_close(dict(result.state_dict()), dict(exact.state_dict()), rtol=0, atol=0)


def test_deploy_form_cannot_go_back(files):
    with pytest.raises(UserError, match=r'form has branches, and .*deploy\.pth is in deploy form.*Add --deploy'):
        convert_weight_file(files / 'timm-deploy.pth', 'A0')


@pytest.mark.parametrize('deploy', [False, True])
def test_another_arch(files, deploy):
    with pytest.raises(UserError, match='look like A0 weights, the model is A1'):
        convert_weight_file(files / 'official-training.pth', 'A1', deploy=deploy)


@pytest.mark.parametrize('deploy', [False, True])
def test_repvggplus(tmp_path, monkeypatch, deploy):
    tiny = ARCHS['L2pse']._replace(depths=(1, 2, 5, 1), width_factors=(0.125,) * 4)
    monkeypatch.setitem(ARCHS, 'L2pse', tiny)
    source = backbone(tiny._asdict())
    tensors = from_native(source.state_dict(), 'RepVGGplus')
    assert {'stage3_first.blocks.1.post_se.down.weight', 'stage3_second.blocks.2.post_se.up.bias'} <= set(tensors)
    torch.save(tensors | {'stage1_aux.2.weight': torch.ones(1), 'linear.weight': torch.ones(1)}, tmp_path / 'plus.pth')
    converted = convert_weight_file(tmp_path / 'plus.pth', 'RepVGGplus-L2pse', 'official', deploy=deploy)
    assert 'RepVGGplus layout, training form' in converted.summary and '1 left out (stage1_aux' in converted.summary
    result = RepVGG('L2pse', deploy=deploy).eval()
    result.load_state_dict(converted.checkpoint)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(result(image), source(image))
    with pytest.raises(UserError, match='timm has no squeeze-and-excitation after the activation'):
        convert_weight_file(tmp_path / 'plus.pth', 'L2pse', 'timm')


def test_values_that_the_precision_of_the_file_cannot_hold_are_refused(model, tmp_path):
    source = backbone('A0')
    source.stage_4[0].branch_3x3.norm.running_var.fill_(1e-12)
    source.stage_4[0].branch_3x3.norm.weight.data.fill_(1e4)
    torch.save({name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in source.state_dict().items()}, tmp_path / 'half.pth')
    with pytest.raises(UserError, match=r'must agree with .*half\.pth to 1e-05 relative.*Nothing was written'):
        convert_weight_file(tmp_path / 'half.pth', 'A0', deploy=True)


# --- the tool --------------------------------------------------------------------------------------------------------

def convert(*arguments: object):
    return run_tool('tools/convert_weights.py', *arguments, check=False)


@pytest.mark.stack
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_the_tool(files, model, tmp_path, suffix):
    target = tmp_path / f'a0.{suffix}'
    result = convert(files / 'timm-training.pth', target, '-a', 'RepVGG-A0', '--to', 'official', '--deploy')
    assert result.returncode == 0, result.stderr
    assert 'timm layout, training form, to official layout, deploy form; classifier kept' in result.stdout
    assert result.stdout.count('relative error') == 4
    loaded = RepVGG('A0', deploy=True).eval()
    loaded.load_state_dict(read_checkpoint(target))
    image = torch.randn(1, 3, 64, 64)
    for found, expected in zip(loaded(image), model(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.stack
def test_mistakes_leave_nothing(files, tmp_path):
    for arguments, message in [
            ((files / 'timm-training.pth', tmp_path / 'out.pth', '-a', 'RepVGG-C1'), 'arch must be one of A0'),
            ((files / 'timm-training.pth', tmp_path / 'out.pth', '-a', 'B0'), 'look like A0 weights, the model is B0'),
            ((files / 'missing.pth', tmp_path / 'out.pth', '-a', 'A0'), 'is missing. Check the path'),
            ((files / 'timm-deploy.pth', tmp_path / 'out.pth', '-a', 'A0'), 'Add --deploy'),
            ((files / 'timm-training.pth', files / 'timm-training.pth', '-a', 'A0'), 'exists. Choose another name')]:
        before = (files / 'timm-training.pth').read_bytes()
        result = convert(*arguments)
        assert result.returncode == 1 and 'Traceback' not in result.stderr and message in result.stderr, result.stderr
        assert os.listdir(tmp_path) == [] and (files / 'timm-training.pth').read_bytes() == before


def test_written_files_are_read_again(files, tmp_path):
    converted = convert_weight_file(files / 'official-training.pth', 'A0', 'native')
    write_checkpoint(tmp_path / 'native.pth', converted.checkpoint)
    assert read_checkpoint(tmp_path / 'native.pth')['meta'] == dict(
        form='training', arch='A0', source='official-training.pth')
