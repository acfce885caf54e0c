"""RepVGG as a backbone: equivalence of whole nets, and what mmseg and mmdet expect."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import (
    TINY,
    TINY_ARCHS,
    TINY_SE,
    assert_same_state,
    backbone,
    branch_sum,
    image,
    pspnet_config,
    randomise_norms,
    snapshot,
)
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from repvgg_mm import ARCHS, RepVGG, UserError, compare_models, fast_dilations, whole_model_convert
from repvgg_mm.block import named_blocks
from repvgg_mm.convert.compare import relative_error

EXACT = dict(rtol=1e-10, atol=1e-10)
LAYOUTS = {
    'stride 32': dict(),
    'stride 8': dict(strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)),
    'fast': dict(strides=(2, 2, 1, 1), dilations=(1, 1, (1, 1, 2, 2), 4)),
    'stride 16': dict(strides=(2, 2, 2, 1), dilations=(1, (2, 4), 1, 2)),
    'stride 2': dict(strides=(1, 1, 1, 1)),
}


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize('arch', ARCHS)
@torch.no_grad()
def test_every_variant_is_its_deploy_form(arch):
    model = backbone(arch)
    x = image(1, 3, 32, 64)
    errors = compare_models(model, whole_model_convert(model), x.float())
    assert list(errors) == [f'output[{i}]' for i in range(4)]
    assert max(errors.values()) <= 1e-5

    truth = branch_sum(model.double(), x)
    model.switch_to_deploy()  # in place, as the largest variants take gigabytes
    assert model.deploy
    assert max(relative_error(*pair) for pair in zip(truth, model(x), strict=True)) <= 1e-10


@pytest.mark.parametrize('arch', ['A0', 'B1g4'])
def test_deploy_form_loads_the_converted_weights(arch):
    converted = whole_model_convert(backbone(arch))
    built = RepVGG(arch, deploy=True).eval()
    built.load_state_dict(converted.state_dict(), strict=True)
    x = image(1, 3, 32, 32, dtype=torch.float32)
    torch.testing.assert_close(built(x), converted(x), rtol=0, atol=0)
    assert built.deploy and converted.deploy


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('arch', TINY_ARCHS)
def test_strides_and_dilations(arch, layout):
    model = backbone(TINY_ARCHS[arch], **LAYOUTS[layout]).double()
    x = image(2, 3, 64, 96)
    truth = branch_sum(model, x)
    torch.testing.assert_close(model(x), truth, **EXACT)

    converted = copy.deepcopy(model)
    converted.switch_to_deploy()
    torch.testing.assert_close(converted(x), truth, **EXACT)

    built = RepVGG(TINY_ARCHS[arch], deploy=True, **LAYOUTS[layout]).double().eval()
    built.load_state_dict(converted.state_dict(), strict=True)
    torch.testing.assert_close(built(x), truth, **EXACT)


@pytest.mark.parametrize('layout, scales', [
    ('stride 32', (4, 8, 16, 32)), ('stride 8', (4, 8, 8, 8)), ('fast', (4, 8, 8, 8)), ('stride 16', (4, 8, 16, 16)),
    ('stride 2', (2, 2, 2, 2))])
@pytest.mark.parametrize('height, width', [(64, 96), (65, 97), (63, 33), (7, 130)])
def test_sizes_of_the_feature_maps(layout, scales, height, width):
    for deploy in (False, True):
        features = backbone(TINY, deploy=deploy, **LAYOUTS[layout])(image(1, 3, height, width, dtype=torch.float32))
        assert [tuple(feature.shape) for feature in features] == [
            (1, channels, -(-height // scale), -(-width // scale)) for channels, scale in zip((8, 16, 32, 64), scales)]


@pytest.mark.parametrize('arch, expected', [
    ('A0', (1, 1, (1,) * 10 + (2,) * 4, 4)), ('B2', (1, 1, (1,) * 12 + (2,) * 4, 4)), (TINY, (1, 1, (2,) * 4, 4))])
def test_fast_dilations_only_in_the_last_five_layers(arch, expected):
    assert fast_dilations(arch) == expected
    with torch.device('meta'):
        model = RepVGG(arch, strides=(2, 2, 1, 1), dilations=fast_dilations(arch))
    found = [block.branch_3x3.conv.dilation[0] for _, block in named_blocks(model)]
    assert found == [1] * (len(found) - 5) + [2, 2, 2, 2, 4]


@pytest.mark.parametrize('out_indices, stages', [
    ((0, 1, 2, 3), (0, 1, 2, 3)), ((-1,), (3,)), ((3, 0), (3, 0)), ([1], (1,)), ((-4, -2), (0, 2)), ((2, 2), (2, 2))])
def test_out_indices(out_indices, stages):
    model = backbone(TINY, out_indices=out_indices)
    x = image(1, 3, 64, 64, dtype=torch.float32)
    torch.manual_seed(0)
    every = backbone(TINY, partial_load=True)
    every.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), tuple(every(x)[stage] for stage in stages), rtol=0, atol=0)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('out_indices, built', [((0,), 1), ((-2,), 3), ((1, 0), 2), ((0, 3), 4)])
def test_only_needed_stages_are_built_and_all_are_trained(out_indices, built, deploy):
    model = backbone(TINY_SE, out_indices=out_indices, deploy=deploy).train()
    assert [f'stage_{i}' for i in range(1, 5) if hasattr(model, f'stage_{i}')] == [
        f'stage_{i}' for i in range(1, built + 1)]
    model(image(2, 3, 64, 64, dtype=torch.float32))[out_indices.index(max(out_indices))].sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize('out_indices', [(), (4,), (-5,), (0, 9), 3])
def test_wrong_out_indices(out_indices):
    with pytest.raises(UserError, match=r'one or more integers from -4 to 3, one a stage; got .*default is \('):
        RepVGG(TINY, out_indices=out_indices)


@pytest.mark.parametrize('strides', [(2, 2, 2), (2,) * 5, (), (2, 2, 1, 0), (2, 2, 1, 'a')])
def test_wrong_strides(strides):
    with pytest.raises(UserError, match=r'strides needs an int of 1 or more for each of the 4 stages, got \('):
        RepVGG(TINY, strides=strides)


@pytest.mark.parametrize('dilations', [
    (1, 1, 1), (1, 1, (2, 2), 4), (1, 1, (1,) * 5, 1), (1, 1, 0, 1), (1, 1, (1, 1, 1, 1.5), 1)])
def test_wrong_dilations(dilations):
    with pytest.raises(UserError, match=r'dilations needs one entry a stage.* stages of \(1, 2, 4, 1\) blocks; got \('):
        RepVGG(TINY, dilations=dilations)


@pytest.mark.parametrize('norm_cfg', [None, {}, 'BN'])
def test_norm_cfg_is_a_dict_with_a_type(norm_cfg):
    with pytest.raises(UserError, match=r"norm_cfg describes a BatchNorm, got .*Give dict\(type='BN'\)"):
        RepVGG(TINY, norm_cfg=norm_cfg)


@pytest.mark.parametrize('depths', [(1, 2), (1, 1, 3, 1)])
def test_an_arch_without_a_fast_variant(depths):
    with pytest.raises(UserError, match=r'last four blocks of stage 3 .* stages of \(1, .*Write its dilations out'):
        fast_dilations(dict(depths=depths, width_factors=(1,) * len(depths)))


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels):
    model = backbone(TINY, in_channels=in_channels).double()
    x = image(1, in_channels, 64, 64)
    truth = branch_sum(model, x)
    model.switch_to_deploy()
    torch.testing.assert_close(model(x), truth, **EXACT)
    assert model.stem.branch_reparam.in_channels == in_channels


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages, deploy):
    model = RepVGG(TINY_SE, frozen_stages=frozen_stages, deploy=deploy)
    frozen = ('stem', 'stage_1', 'stage_2', 'stage_3', 'stage_4')[:frozen_stages + 1]
    assert model.training
    for _ in range(2):  # as constructed, and after .train()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (name.split('.')[0] not in frozen), name
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                assert module.training == (name.split('.')[0] not in frozen), name
        model.eval()
        model.train()
    assert model.training


def test_frozen_stages_stay_frozen_in_deploy_form():
    model = RepVGG(TINY, frozen_stages=2)
    model.switch_to_deploy()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.split('.')[0] not in ('stem', 'stage_1', 'stage_2')), name


def test_training_leaves_frozen_stages_unchanged():
    model = randomise_norms(RepVGG(TINY, frozen_stages=1)).train()
    before = snapshot(model)
    features = model(image(2, 3, 64, 64, dtype=torch.float32))
    sum(feature.square().mean() for feature in features).backward()
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
    changed = {name.split('.')[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {'stage_2', 'stage_3', 'stage_4'}


@pytest.mark.parametrize('frozen_stages, out_indices, last', [(5, (3,), 4), (-2, (3,), 4), (2, (0,), 1)])
def test_wrong_frozen_stages(frozen_stages, out_indices, last):
    with pytest.raises(UserError, match=rf'frozen_stages must be from -1 \(none\) to {last} .* got {frozen_stages}\.'):
        RepVGG(TINY, frozen_stages=frozen_stages, out_indices=out_indices)


def test_norm_eval_keeps_statistics_while_weights_train():
    model = randomise_norms(RepVGG(TINY, norm_eval=True)).double().train()
    assert model.training and model.stage_2[1].training
    assert not any(norm.training for norm in norms(model))
    before = snapshot(model)
    model(image(2, 3, 64, 64))[3].square().mean().backward()
    assert_same_state(model, before)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_norm_eval_all_norms_train():
    model = RepVGG(TINY).eval().train()
    assert all(norm.training for norm in norms(model))


@pytest.mark.parametrize('arch', TINY_ARCHS)
def test_gradients_with_norm_eval(arch):
    model = randomise_norms(RepVGG(TINY_ARCHS[arch], norm_eval=True)).double().train()
    x = image(2, 3, 64, 96).requires_grad_()

    def gradients(features: tuple) -> list:
        loss = sum((feature * image(*feature.shape, seed=7)).mean() for feature in features)
        return list(torch.autograd.grad(loss, [x, *model.parameters()]))

    found, truth = gradients(model(x)), gradients(branch_sum(model, x))
    for name, actual, expected in zip(['x', *dict(model.named_parameters())], found, truth):
        assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max(), name
        assert expected.abs().max() > 0 or 'se_layer' in name, name  # few hidden channels may all be negative


@pytest.mark.parametrize('frozen_stages', [-1, 1])
@pytest.mark.parametrize('norm_eval', [False, True])
def test_with_cp(norm_eval, frozen_stages):
    plain = randomise_norms(RepVGG(TINY_SE, norm_eval=norm_eval, frozen_stages=frozen_stages)).double().train()
    checkpointed = RepVGG(TINY_SE, norm_eval=norm_eval, frozen_stages=frozen_stages, with_cp=True).double().train()
    checkpointed.load_state_dict(plain.state_dict())
    x = image(2, 3, 64, 64)
    for model in (plain, checkpointed):
        sum(feature.square().mean() for feature in model(x)).backward()
    assert_same_state(checkpointed, snapshot(plain))
    for (name, expected), found in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(found.grad, expected.grad, msg=name, **EXACT)


@pytest.mark.parametrize('deploy', [False, True])
def test_train_and_eval_return_the_model(deploy):
    model = RepVGG(TINY, deploy=deploy)
    assert model.eval() is model and not model.training
    assert model.train() is model and model.training
    assert model.train(False) is model and not model.training


def test_switching_twice_is_switching_once():
    model = backbone(TINY_SE)
    model.switch_to_deploy()
    before = snapshot(model)
    model.switch_to_deploy()
    assert_same_state(model, before)
    assert model.deploy


def test_failing_block_is_named_and_nothing_changes():
    model = backbone(TINY)
    model.stage_3[2].branch_norm.running_var[1] = float('nan')
    before = snapshot(model)
    with pytest.raises(UserError, match=r'^stage_3\.2: .*but branch_norm has mean'):
        model.switch_to_deploy()
    assert_same_state(model, before)


@pytest.mark.parametrize('deploy', [False, True])
def test_names_in_the_state_dict_are_those_of_mmpretrain(deploy):
    norm = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    expected = set()
    for name, identity in (('stem', False), ('stage_1.0', False), ('stage_2.0', False), ('stage_2.1', True)):
        expected |= {f'{name}.se_layer.conv{i}.conv.{kind}' for i in (1, 2) for kind in ('weight', 'bias')}
        if deploy:
            expected |= {f'{name}.branch_reparam.weight', f'{name}.branch_reparam.bias'}
            continue
        for branch in ('branch_3x3', 'branch_1x1'):
            expected |= {f'{name}.{branch}.conv.weight', *(f'{name}.{branch}.norm.{kind}' for kind in norm)}
        if identity:
            expected |= {f'{name}.branch_norm.{kind}' for kind in norm}
    assert set(RepVGG(TINY_SE, out_indices=(1,), deploy=deploy).state_dict()) == expected


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('out_indices, blocks', [((3,), 8), ((0, 1), 3)])
def test_the_stem_and_every_block_are_a_layer(out_indices, blocks, deploy):
    model = RepVGG(TINY_SE, out_indices=out_indices, deploy=deploy)
    layers = ['stem', 'stage_1.0', 'stage_2.0', 'stage_2.1', *(f'stage_3.{block}' for block in range(4)), 'stage_4.0']
    checked = set()
    for depth, layer in enumerate(layers[:1 + blocks]):
        for name, _ in model.get_submodule(layer).named_parameters(prefix=layer):
            checked.add(name)
            assert model.get_layer_depth(name) == (depth, blocks + 2)
            assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, blocks + 2)
            assert model.get_layer_depth(name, 'backbone.') == (blocks + 1, blocks + 2)  # of another part of the model
    assert checked == {name for name, _ in model.named_parameters()}
    for name in ('head.fc.weight', 'stem_of_a_head.weight', 'backbone.norm.weight'):
        assert model.get_layer_depth(name, 'backbone.') == (blocks + 1, blocks + 2)


@pytest.mark.parametrize('strides', [(2, 2, 1, 1), (1, 1, 1, 1)])
def test_stride_1_adds_no_identity_branch(strides):
    same_width = dict(depths=(1, 2, 2, 1), width_factors=(0.25, 0.125, 0.0625, 0.03125))  # 16 channels everywhere
    model = RepVGG(same_width, strides=strides)
    assert [model.get_submodule(f'stage_{i}')[0].branch_norm for i in range(1, 5)] == [None] * 4
    assert list(model.state_dict()) == list(RepVGG(same_width).state_dict())


def test_pretrained_is_short_for_init_cfg(tmp_path):
    source = backbone(TINY)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'weights.pth')
    model = RepVGG(TINY, pretrained=str(tmp_path / 'weights.pth'))
    assert model.init_cfg == dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model.init_weights()
    assert_same_state(model, snapshot(source))


def test_pretrained_and_init_cfg_exclude_each_other():
    with pytest.raises(UserError, match=r"from pretrained or from init_cfg, got 'a\.pth' and .*Kaiming.*Remove one"):
        RepVGG(TINY, pretrained='a.pth', init_cfg=dict(type='Kaiming', layer='Conv2d'))


@pytest.mark.parametrize('name', ['open-mmlab://resnet50_v1c', 'torchvision://resnet50'])
def test_weights_of_another_network_that_a_base_config_hands_down(name):
    with pytest.raises(UserError, match=rf"weights of a RepVGG, and pretrained='{name}' names another .*=None"):
        MODELS.build(ConfigDict(pspnet_config(), pretrained=name))
    assert RepVGG(TINY, pretrained='mmcls://repvgg_a0').init_cfg['checkpoint'] == 'mmcls://repvgg_a0'


def test_segmentor_hands_pretrained_to_the_backbone():
    config = ConfigDict(pspnet_config(), pretrained='a.pth')
    assert MODELS.build(config).backbone.init_cfg == dict(type='Pretrained', checkpoint='a.pth')


@pytest.mark.parametrize('options', [dict(), dict(deploy=True), dict(frozen_stages=1, norm_eval=True, with_cp=True)])
def test_building_and_switching_print_nothing(capfd, options):
    RepVGG('A0', **options).switch_to_deploy()
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('norm_cfg', [dict(type='SyncBN'), dict(type='BN', eps=1e-3, momentum=0.01)])
def test_norm_cfg(norm_cfg):
    model = backbone(TINY, norm_cfg=norm_cfg).double()
    x = image(2, 3, 64, 64)
    truth = branch_sum(model, x)
    assert norms(model)[0].eps == norm_cfg.get('eps', 1e-5)
    assert isinstance(norms(model)[0], nn.SyncBatchNorm) == (norm_cfg['type'] == 'SyncBN')
    torch.testing.assert_close(whole_model_convert(model)(x), truth, **EXACT)


@pytest.mark.parametrize('norm_cfg, kind', [
    (dict(type='GN', num_groups=2), 'GroupNorm'), (dict(type='LN'), 'LayerNorm'), (dict(type='IN'), 'InstanceNorm2d')])
def test_norms_that_cannot_be_fused(norm_cfg, kind):
    with pytest.raises(UserError, match=rf"branch_3x3\.norm is {kind}\. Use norm_cfg=dict\(type='BN'\)"):
        RepVGG(TINY, norm_cfg=norm_cfg)


def test_norms_without_running_statistics():
    with pytest.raises(UserError, match=r'keeps none \(track_running_stats=False'):
        RepVGG(TINY, norm_cfg=dict(type='BN', track_running_stats=False))


@pytest.mark.parametrize('deploy', [False, True])
def test_act_cfg(deploy):
    model = RepVGG(TINY, act_cfg=dict(type='LeakyReLU', negative_slope=0.3), deploy=deploy)
    assert {(type(block.act), block.act.negative_slope) for _, block in named_blocks(model)} == {(nn.LeakyReLU, 0.3)}


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_features_are_in_the_memory_format_of_image_and_weights(memory_format):
    model, images = backbone().train(), torch.randn(2, 3, 48, 64)
    for feature in model(images.to(memory_format=memory_format)):
        assert feature.is_contiguous(memory_format=memory_format)
    for feature in model.to(memory_format=memory_format)(images):
        assert feature.is_contiguous(memory_format=memory_format)
