"""Weights into RepVGG through every route there is: loaded completely, fused if need be, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    TINY,
    TINY_GROUPED,
    TINY_PSE,
    TINY_SE,
    assert_same_state,
    backbone,
    pspnet,
    pspnet_config,
    retinanet,
    retinanet_config,
    snapshot,
)
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from repvgg_mm import ARCHS, RepVGG, UserError, whole_model_convert
from repvgg_mm.layouts import COLUMNS, from_native
from repvgg_mm.pretrained import WRAPPERS, guess_arch, unwrap

WIDER = dict(TINY, width_factors=(0.25, 0.25, 0.25, 0.25))
WHOLE = {'PSPNet': (pspnet, pspnet_config), 'RetinaNet': (retinanet, retinanet_config)}


def moved(model: nn.Module) -> nn.Module:
    """The model with other weights than the tests' fixed seed gives, so that loading is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def into_whole_by_torch(build, config, source, path, **options):
    target = build(**options)
    target.load_state_dict(source.state_dict(), strict=False)
    return target


def into_whole_by_mmengine(build, config, source, path, **options):
    torch.save(dict(meta=dict(epoch=1), state_dict=source.state_dict()), path)
    target = build(**options)
    load_checkpoint(target, str(path))
    return target


def by_init_cfg_with_prefix(build, config, source, path, **options):
    torch.save(dict(state_dict=source.state_dict()), path)
    target = MODELS.build(config(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'), **options))
    target.init_weights()
    return target


def by_init_cfg(build, config, source, path, **options):
    torch.save(from_native(source.backbone.state_dict(), 'official'), path)
    target = MODELS.build(config(init_cfg=dict(type='Pretrained', checkpoint=str(path)), **options))
    target.init_weights()
    return target


def by_pretrained(build, config, source, path, **options):
    tensors = {f'module.{name}': tensor for name, tensor in from_native(source.backbone.state_dict(), 'timm').items()}
    torch.save(dict(model=tensors, optimizer={}, epoch=3), path)
    target = MODELS.build(config(pretrained=str(path), **options))
    target.init_weights()
    return target


ROUTES = [into_whole_by_torch, into_whole_by_mmengine, by_init_cfg_with_prefix, by_init_cfg, by_pretrained]


@pytest.fixture(params=ROUTES, ids=lambda route: route.__name__)
def load(request, tmp_path):
    return lambda build, config, source, **options: request.param(
        build, config, source, tmp_path / 'weights.pth', **options)


@pytest.mark.stack
@pytest.mark.parametrize('whole', WHOLE)
def test_training_form_into_training_form(whole, load):
    source = moved(WHOLE[whole][0]())
    assert_same_state(load(*WHOLE[whole], source).backbone, snapshot(source.backbone))


@pytest.mark.stack
@pytest.mark.parametrize('whole', WHOLE)
def test_training_form_into_deploy_form_is_converting(whole, load):
    source = moved(WHOLE[whole][0]())
    target = load(*WHOLE[whole], source, deploy=True)
    assert_same_state(target.backbone, snapshot(whole_model_convert(source).backbone))


@pytest.mark.stack
@pytest.mark.parametrize('whole', WHOLE)
def test_deploy_form_into_training_form(whole, load):
    source = whole_model_convert(WHOLE[whole][0]())
    with pytest.raises(UserError, match=r'in training form needs .* these are in deploy form: .*deploy=True\)\.'):
        load(*WHOLE[whole], source)


@pytest.mark.stack
@pytest.mark.parametrize('whole', WHOLE)
@pytest.mark.parametrize('deploy', [False, True])
def test_another_arch(whole, deploy, load):
    source = WHOLE[whole][0](WIDER)
    with pytest.raises(UserError, match=r'no known variant, .*: 0 of 106 .* 106 other shape .*partial_load=True'):
        load(*WHOLE[whole], source, deploy=deploy)


@pytest.mark.parametrize('names', COLUMNS)
@pytest.mark.parametrize('arch', [TINY, TINY_GROUPED, TINY_SE, TINY_PSE], ids=['plain', 'grouped', 'se', 'pse'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'backbone.', 'backbone.timm_model.'])
def test_every_layout_form_and_prefix(names, arch, prefix):
    source = moved(backbone(arch))
    converted = whole_model_convert(source)
    for model, deploy, expected in ((source, False, source), (source, True, converted), (converted, True, converted)):
        target = RepVGG(arch, deploy=deploy)
        renamed = from_native(model.state_dict(), names)
        target.load_state_dict({prefix + name: tensor for name, tensor in renamed.items()})
        torch.testing.assert_close(dict(target.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize('wrap', [
    lambda tensors: dict(state_dict=tensors), lambda tensors: dict(model=tensors, optimizer={}, config={}, epoch=1),
    lambda tensors: dict(ema=tensors), lambda tensors: dict(model=tensors, ema={})])
def test_wrappers(wrap):
    source, target = moved(backbone()), backbone()
    target.load_state_dict(wrap(from_native(source.state_dict(), 'official')))
    assert_same_state(target, snapshot(source))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_fusing_while_loading_keeps_the_precision_of_converting(dtype):
    source = backbone(TINY_GROUPED).to(dtype)
    target = RepVGG(TINY_GROUPED, deploy=True).to(dtype)
    target.load_state_dict(source.state_dict())
    assert_same_state(target, snapshot(whole_model_convert(source)))


def test_fusing_while_loading_takes_the_epsilon_of_the_norms():
    norm_cfg = dict(type='BN', eps=0.1)
    source, target = backbone(norm_cfg=norm_cfg), RepVGG(TINY, deploy=True, norm_cfg=norm_cfg)
    target.load_state_dict(source.state_dict())
    assert_same_state(target, snapshot(whole_model_convert(source)))


def test_impossible_statistics_are_not_fused():
    source = backbone()
    source.stage_2[1].branch_norm.running_var[3] = -1
    with pytest.raises(UserError, match=r'stage_2\.1\.branch_norm has mean .* variance -1 in channel 3 \(1 of 16'):
        RepVGG(TINY, deploy=True).load_state_dict(source.state_dict())


@pytest.mark.parametrize('weights, model, guess', [
    ('B1g4', 'B1', 'B1g4'), ('B1', 'B1g2', 'B1'), ('A0', 'A1', 'A0'), ('B2', 'D2se', 'B2'), ('L2pse', 'D2se', 'L2pse'),
    ('D2se', 'L2pse', 'D2se'), ('B3', 'B2', 'B3')])
@pytest.mark.parametrize('deploy', [False, True])
def test_the_message_names_the_arch_of_the_weights(weights, model, guess, deploy):
    with torch.device('meta'):
        file, target = RepVGG(weights, deploy=deploy).state_dict(), RepVGG(model, deploy=deploy)
        message = f"These look like {guess} weights, the model is {model}: .*Build it with arch='{guess}'"
        with pytest.raises(UserError, match=message):
            target.load_state_dict(file)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('arch', ARCHS)
def test_every_arch_is_recognised(arch, deploy):
    with torch.device('meta'):
        tensors = RepVGG(arch, deploy=deploy).state_dict()
    assert guess_arch(tensors) == arch
    assert guess_arch(dict(list(tensors.items())[:len(tensors) // 2])) is not None


def test_nothing_is_recognised_in_other_weights():
    assert guess_arch(backbone(TINY).state_dict()) is None
    assert guess_arch({}) is None


def test_half_a_file():
    with torch.device('meta'):
        model = RepVGG('A0')
        half = dict(list(model.state_dict().items())[:170])
        with pytest.raises(UserError, match=r'A0 weights, which the model is too.*: 141 of 288 .* 147 missing'):
            model.load_state_dict(half)


def test_weights_of_another_network():
    with pytest.raises(UserError, match=r'No name here .*2 other names \(conv1\.weight, layer1.*: 0 of 106 '):
        backbone().load_state_dict({'conv1.weight': torch.ones(1), 'layer1.0.bn1.bias': torch.ones(1)})


def test_stages_that_are_not_built_are_set_aside():
    source, target = moved(backbone()), backbone(out_indices=(1,))
    target.load_state_dict(source.state_dict())
    assert_same_state(target, {name: tensor for name, tensor in snapshot(source).items()
                               if name.startswith(('stem', 'stage_1', 'stage_2'))})


@pytest.mark.parametrize('part', ['num_batches_tracked', 'linear'])
def test_old_files_without_counters_and_files_with_a_classifier_load(part):
    source, target = moved(backbone()), backbone()
    file = {name: tensor for name, tensor in from_native(source.state_dict(), 'official').items()
            if not name.endswith(part)}
    target.load_state_dict(file | {'linear.weight': torch.ones(1), 'linear.bias': torch.ones(1)}, strict=True)
    assert_same_state(target, snapshot(source))


def test_a_partial_load_is_explicit_and_keeps_the_rest():
    source, target = moved(backbone(in_channels=4)), backbone(partial_load=True)
    before = snapshot(target)
    target.load_state_dict(source.state_dict())
    for name, tensor in target.state_dict().items():
        of_stem_input = name in ('stem.branch_3x3.conv.weight', 'stem.branch_1x1.conv.weight')
        torch.testing.assert_close(tensor, before[name] if of_stem_input else source.state_dict()[name], rtol=0, atol=0)
    with pytest.raises(UserError, match='2 other shape'):
        backbone().load_state_dict(source.state_dict())
    with pytest.raises(UserError, match='0 of 106'):
        target.load_state_dict({'other': torch.ones(1)})


def test_the_log_says_what_was_loaded(monkeypatch):
    said = []
    monkeypatch.setattr('repvgg_mm.backbone.print_log', lambda text, logger, level=None: said.append(text))
    file = from_native(backbone().state_dict(), 'timm') | {'head.fc.weight': torch.ones(1)}
    RepVGG(TINY, deploy=True).load_state_dict(file)
    assert said == ['RepVGG: 106 of 106 tensors loaded (timm layout, training form, fused while loading): 0 missing, '
                    '0 unexpected, 0 other shape; 1 set aside (head.fc.weight).']


def test_a_prefix_that_is_not_in_the_file(tmp_path):
    torch.save(from_native(backbone().state_dict(), 'official'), tmp_path / 'official.pth')
    model = RepVGG(TINY, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'official.pth'), prefix='backbone.'))
    with pytest.raises(UserError, match=r'backbone\. is not in the pretrained model: .*Leave prefix out'):
        model.init_weights()


def test_of_several_wrappers_the_first_counts():
    """mmengine's `state_dict` holds the averaged weights; timm's `model` is what its `ema` was averaged from."""
    own = {key: dict(weight=torch.full((1,), float(number))) for number, key in enumerate(WRAPPERS)}
    assert WRAPPERS == ('state_dict', 'model', 'ema')
    for number, key in enumerate(WRAPPERS):
        assert unwrap(own)['weight'].item() == number
        del own[key]
