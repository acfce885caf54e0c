"""Loading is complete or refused."""

from __future__ import annotations

import pytest
import torch
from helpers import TINY, TINY_SE, assert_same_state, backbone, pspnet, retinanet, snapshot
from torch import nn

from repvgg_mm import UserError, load_strictly, whole_model_convert
from repvgg_mm.convert.weights import state_dict_of
from repvgg_mm.layouts import from_native

# --- the weights inside ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('wrap', [
    lambda tensors: tensors, lambda tensors: dict(state_dict=tensors, epoch=3), lambda tensors: dict(model=tensors),
    lambda tensors: dict(ema=tensors, epoch=1), lambda tensors: dict(model=tensors, ema=dict(weight=torch.ones(1)))])
@pytest.mark.parametrize('prefix', [
    '', 'module.', 'module.module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_state_dict_of(wrap, prefix):
    inner = {'backbone.weight': torch.ones(1), 'decode_head.module.conv': torch.ones(2)}
    found = state_dict_of(wrap({prefix + name: tensor for name, tensor in inner.items()}), 'file')
    assert list(found) == list(inner)


def test_module_is_kept_where_it_does_not_lead_everywhere():
    names = ['module.conv', 'decode_head.module.conv']
    assert list(state_dict_of(dict.fromkeys(names, torch.ones(1)), 'file')) == names


@pytest.mark.parametrize('checkpoint', [{}, dict(state_dict={}), dict(meta=dict(epoch=1)), dict(state_dict=dict(a=1))])
def test_no_tensors(checkpoint):
    with pytest.raises(UserError, match='holds named tensors, and file has none; its keys are'):
        state_dict_of(checkpoint, 'file')


# --- loading ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('build', [backbone, pspnet])
def test_loading(build, prefix):
    source, model = build(), build()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    state_dict = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    load_strictly(model, dict(state_dict=state_dict), 'file')
    assert_same_state(model, snapshot(source))


def without(model: nn.Module, *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefixes)}


@pytest.mark.parametrize('model, weights, message', [
    (lambda: backbone(), lambda: backbone(dict(TINY, width_factors=(0.25,) * 4)).state_dict(),
     r'0 of 106 .*0 missing, 0 unexpected, 106 other shape \(stem\.branch_3x3\.conv\.weight \(16, 3, 3, 3\) in'),
    (lambda: backbone(), lambda: backbone(TINY_SE).state_dict(), r'0 missing, \d+ unexpected \(stem\.se_layer'),
    (lambda: backbone(TINY_SE), lambda: backbone().state_dict(), r'\d+ missing \(stem\.se_layer'),
    (lambda: backbone(), lambda: backbone(dict(TINY, depths=(1, 1, 4, 1))).state_dict(), r'missing \(stage_2\.1\.'),
    (lambda: pspnet(), lambda: without(pspnet(), 'backbone.'), r'No name here begins as .*missing \(stem\.'),
    (lambda: pspnet(), lambda: without(pspnet(), 'decode_head.', 'auxiliary_head.'), r'\d+ missing \(decode_head\.'),
    (lambda: pspnet(), lambda: backbone().state_dict(), r': A whole model loads .* bare RepVGG \(native'),
    (lambda: backbone(), lambda: whole_model_convert(backbone()).state_dict(), r'in deploy form: their branches were'),
    (lambda: pspnet(), lambda: whole_model_convert(pspnet()).state_dict(), r'file: .* needs weights in training form'),
], ids=['width', 'se in file', 'se in model', 'depth', 'no backbone', 'no head', 'backbone alone',
        'deploy into training', 'deploy into training, whole'])
def test_weights_that_do_not_fit(model, weights, message):
    target = model()
    before = snapshot(target)
    with pytest.raises(UserError, match=message):
        load_strictly(target, weights(), 'file')
    assert_same_state(target, before)


def test_a_tensor_that_the_model_does_not_have():
    target = pspnet()
    before = snapshot(target)
    weights = {**pspnet().state_dict(), 'decode_head.extra': torch.ones(1)}
    with pytest.raises(UserError, match=r'0 missing; 1 unexpected \(decode_head\.extra\); 0 of other shape'):
        load_strictly(target, weights, 'file')
    assert_same_state(target, before)


@pytest.mark.parametrize('kind', [
    lambda tensor: (tensor * 100).to(torch.int8), lambda tensor: tensor.to(torch.complex64), torch.Tensor.to_sparse,
    lambda tensor: tensor > 0], ids=['int8', 'complex', 'sparse', 'bool'])
@pytest.mark.parametrize('build, name', [
    (backbone, 'stage_1.0.branch_1x1.conv.weight'), (pspnet, 'backbone.stage_1.0.branch_3x3.norm.weight'),
    (pspnet, 'decode_head.conv_seg.weight'), (lambda: backbone(deploy=True), 'stem.branch_reparam.weight')])
def test_weights_that_are_no_dense_real_numbers(build, name, kind):
    target = build()
    before, weights = snapshot(target), target.state_dict()
    weights[name] = kind(weights[name])
    own_name = name.removeprefix('backbone.')
    with pytest.raises(UserError, match=rf'are 1 of another kind \(.*{own_name} of .*was not quantised'):
        load_strictly(target, weights, 'file')
    assert_same_state(target, before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(dtype):
    source, target = pspnet(), pspnet()
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
               for name, tensor in source.state_dict().items()}
    load_strictly(target, weights, 'file')
    kept = weights['decode_head.conv_seg.weight'].float()
    torch.testing.assert_close(target.decode_head.conv_seg.weight.detach(), kept, rtol=0, atol=0)


@pytest.mark.parametrize('build', [backbone, pspnet, retinanet])
def test_training_form_into_deploy_form_is_converting(build):
    trained, target = build(), build(deploy=True)
    load_strictly(target, dict(state_dict=trained.state_dict()), 'file')
    assert_same_state(target, snapshot(whole_model_convert(trained)))


@pytest.mark.parametrize('layout', ['official', 'RepVGGplus', 'timm'])
def test_a_backbone_alone_and_its_classifier_is_set_aside(layout):
    source, target = backbone(), backbone(norm_eval=True)
    with torch.no_grad():
        source.stem.branch_3x3.conv.weight.zero_()
    classifier = {'linear.weight': torch.ones(2, 64), 'head.fc.bias': torch.ones(2)}
    load_strictly(target, dict(model=from_native(source.state_dict(), layout) | classifier), 'file')
    assert_same_state(target, snapshot(source))


def test_loading_into_a_model_whose_names_all_start_with_module():
    source, target = nn.ModuleDict(dict(module=backbone())), nn.ModuleDict(dict(module=backbone(norm_eval=True)))
    with torch.no_grad():
        source.module.stem.branch_3x3.conv.weight.zero_()
    load_strictly(target, source.state_dict(), 'file')
    assert_same_state(target, snapshot(source))


@pytest.mark.parametrize('layout', ['native', 'official', 'timm'])
def test_a_bare_backbone_for_a_whole_model(layout):
    model = pspnet()
    weights = backbone(TINY).state_dict()
    weights = weights if layout == 'native' else from_native(weights, layout)
    before = snapshot(model)
    with pytest.raises(UserError, match=rf'file: A whole model loads .* bare RepVGG \({layout} layout\)\. Start'):
        load_strictly(model, weights, 'file')
    assert_same_state(model, before)
    with pytest.raises(UserError, match=r"No name here begins as this backbone's do.*belong into backbone\.init_cfg"):
        model.load_state_dict(weights)
