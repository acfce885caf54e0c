"""Whole models, in every wrapper, against the sum of their branches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import TINY, TINY_ARCHS, assert_same_state, backbone, block, branch_sum, image, pspnet, retinanet, snapshot
from mmcv.cnn.utils import fuse_conv_bn
from mmseg.models import SegTTAModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from repvgg_mm import RepVGGBlock, UserError, compare_models, whole_model_convert
from repvgg_mm.block import named_blocks

EXACT = dict(rtol=1e-10, atol=1e-10)
X = image(2, 3, 64, 96)
MODELS = dict(pspnet=pspnet, retinanet=retinanet, backbone=backbone)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def is_deploy(model: nn.Module) -> bool:
    blocks = [block for _, block in named_blocks(model)]
    return bool(blocks) and all(block.deploy for block in blocks)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def flat(out) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else [tensor for value in out for tensor in flat(value)]


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('arch', TINY_ARCHS)
@pytest.mark.parametrize('build', [pspnet, retinanet])
def test_whole_model(build, arch, dtype, tolerance):
    model = build(TINY_ARCHS[arch]).to(dtype)
    converted = whole_model_convert(model)
    assert is_deploy(converted) and not is_deploy(model)
    for expected, found in zip(flat(branch_sum(model, X.to(dtype))), flat(converted(X.to(dtype))), strict=True):
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_fast_dilations_and_sync_bn_in_a_segmentor():
    model = pspnet(dilations=(1, 1, (1, 2, 2, 2), 4), norm_cfg=dict(type='SyncBN')).double()
    errors = compare_models(model, whole_model_convert(model), X)
    assert len(errors) == 5 and max(errors.values()) <= 1e-10


def test_all_but_the_blocks_is_kept():
    model = pspnet()
    converted = whole_model_convert(model)
    for part in ('decode_head', 'auxiliary_head', 'data_preprocessor'):
        assert_same_state(getattr(converted, part), snapshot(getattr(model, part)))
    assert sum(isinstance(m, _BatchNorm) for m in converted.decode_head.modules()) == 5
    assert not any(isinstance(m, _BatchNorm) for m in converted.backbone.modules())


def test_distributed_data_parallel(process_group):
    wrapped = DistributedDataParallel(pspnet().double()).eval()
    with torch.no_grad():
        truth = branch_sum(wrapped, X)
    converted = whole_model_convert(wrapped)
    assert is_deploy(converted) and not is_deploy(wrapped)
    with torch.no_grad():
        torch.testing.assert_close(converted(X), truth, **EXACT)


def test_distributed_model_into_a_plain_one(process_group):
    wrapped = DistributedDataParallel(pspnet().double()).eval()
    deploy = pspnet(deploy=True).double()
    truth = branch_sum(wrapped.module, X)
    assert whole_model_convert(wrapped, deploy) is deploy
    torch.testing.assert_close(deploy(X), truth, **EXACT)


def test_test_time_augmentation_wrapper():
    model = pspnet().double()
    converted = whole_model_convert(SegTTAModel(module=model))
    assert isinstance(converted, SegTTAModel) and is_deploy(converted)
    torch.testing.assert_close(converted.module(X), branch_sum(model, X), **EXACT)


def test_test_time_augmentation_wrapper_into_another():
    model, deploy = pspnet().double(), pspnet(deploy=True).double()
    whole_model_convert(SegTTAModel(module=model), SegTTAModel(module=deploy))
    torch.testing.assert_close(deploy(X), branch_sum(model, X), **EXACT)


def test_a_block_as_the_root():
    training = block(8, 8, identity=True)
    x = image(2, 8, 5, 7)
    converted = whole_model_convert(training)
    assert isinstance(converted, RepVGGBlock) and converted.deploy and not training.deploy
    torch.testing.assert_close(converted(x), branch_sum(training, x), **EXACT)


def test_a_block_that_stands_twice_in_the_model():
    shared = block(8, 8, identity=True)
    model = nn.Sequential(shared, nn.Sequential(shared))
    x = image(2, 8, 5, 7)
    truth = branch_sum(model, x)
    converted = whole_model_convert(model)
    assert converted[0] is converted[1][0]
    torch.testing.assert_close(converted(x), truth, **EXACT)


@pytest.mark.parametrize('build', MODELS.values(), ids=MODELS)
@pytest.mark.parametrize('training', [True, False])
def test_the_source_is_untouched(build, training):
    model = build(frozen_stages=1).train(training)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    state, modes_before = snapshot(model), modes(model)
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    converted = whole_model_convert(model)

    assert_same_state(model, state)
    assert modes(model) == modes_before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains
    assert next(model.parameters()).grad.eq(1).all()
    memory = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not any(tensor.data_ptr() in memory for tensor in converted.state_dict().values())


@pytest.mark.parametrize('training', [True, False])
def test_in_place(training):
    model = pspnet().double()
    truth = branch_sum(model, X)
    model.train(training)
    assert whole_model_convert(model, inplace=True) is model
    assert is_deploy(model)
    torch.testing.assert_close(model(X), truth, **EXACT)


@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.parametrize('build', MODELS.values(), ids=MODELS)
def test_the_result_is_in_eval_mode(build, inplace):
    converted = whole_model_convert(build().train(), inplace=inplace)
    assert set(modes(converted).values()) == {False}


def test_statistics_of_other_norms_do_not_change():
    model = pspnet().train()
    before = snapshot(model.decode_head)
    converted = whole_model_convert(model)
    converted(X.float())
    assert_same_state(converted.decode_head, before)


@pytest.mark.parametrize('build', MODELS.values(), ids=MODELS)
def test_converting_twice_is_converting_once(build):
    once = whole_model_convert(build())
    assert_same_state(whole_model_convert(once), snapshot(once))
    assert whole_model_convert(once, inplace=True) is once


@pytest.mark.parametrize('build', MODELS.values(), ids=MODELS)
def test_into_a_deploy_model(build):
    model, deploy = build().double().train(), build(deploy=True).double().train()
    state = snapshot(model)
    assert whole_model_convert(model, deploy) is deploy
    assert_same_state(model, state)
    assert set(modes(deploy).values()) == {False}
    model.eval()
    for expected, found in zip(flat(branch_sum(model, X)), flat(deploy(X)), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_a_deploy_model_keeps_its_dtype():
    deploy = backbone(deploy=True).half()
    model = backbone()
    whole_model_convert(model, deploy)
    assert {parameter.dtype for parameter in deploy.parameters()} == {torch.float16}
    expected = whole_model_convert(model).stem.branch_reparam.weight.half()
    torch.testing.assert_close(deploy.stem.branch_reparam.weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize('deploy_model, message', [
    (lambda: pspnet(dict(TINY, width_factors=(0.25,) * 4), deploy=True), 'other shape'),
    (lambda: retinanet(deploy=True), 'missing'),
    (lambda: pspnet(), 'in deploy form')])
def test_a_deploy_model_that_does_not_fit(tmp_path, deploy_model, message):
    model, deploy = pspnet(), deploy_model()
    states = snapshot(model), snapshot(deploy)
    with pytest.raises(UserError, match=f'the converted model.*{message}'):
        whole_model_convert(model, deploy, tmp_path / 'deploy.pth')
    assert_same_state(model, states[0])
    assert_same_state(deploy, states[1])
    assert list(tmp_path.iterdir()) == []


def test_two_targets_are_refused():
    model, deploy = pspnet(), pspnet(deploy=True)
    before = snapshot(model)
    with pytest.raises(UserError, match='both were given'):
        whole_model_convert(model, deploy, inplace=True)
    assert_same_state(model, before)


@pytest.mark.parametrize('with_deploy_model', [True, False])
def test_saving(tmp_path, with_deploy_model):
    path = tmp_path / 'new' / 'deploy.pth'
    model = pspnet()
    converted = whole_model_convert(model, pspnet(deploy=True) if with_deploy_model else None, path)

    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {'meta', 'state_dict'}
    assert checkpoint['meta']['form'] == 'deploy'
    loaded = pspnet(deploy=True)
    loaded.load_state_dict(checkpoint['state_dict'], strict=True)
    assert_same_state(loaded, snapshot(converted))
    assert [file.name for file in path.parent.iterdir()] == ['deploy.pth']


def test_the_historical_call_with_positions(tmp_path):
    model, deploy = pspnet(), pspnet(deploy=True)
    assert whole_model_convert(model, deploy, str(tmp_path / 'deploy.pth')) is deploy
    assert list(torch.load(tmp_path / 'deploy.pth')['state_dict']) == list(deploy.state_dict())


@pytest.mark.parametrize('model', [
    nn.Conv2d(3, 3, 3), nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))], ids=['conv', 'sequential'])
def test_no_block(tmp_path, model):
    with pytest.raises(UserError, match=rf"fuses RepVGG blocks, and {type(model).__name__} contains none.*'RepVGG'"):
        whole_model_convert(model, save_path=tmp_path / 'deploy.pth')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.parametrize('value', [math.nan, -1.])
def test_a_damaged_block_is_named_and_nothing_changes(tmp_path, value, inplace):
    model = pspnet().train()
    model.backbone.stage_4[0].branch_1x1.norm.running_var[3] = value
    before, modes_before = snapshot(model), modes(model)
    with pytest.raises(UserError, match=r'^backbone\.stage_4\.0: .*but branch_1x1\.norm has mean .* in channel 3'):
        whole_model_convert(model, save_path=tmp_path / 'deploy.pth', inplace=inplace)
    assert_same_state(model, before)
    assert modes(model) == modes_before
    assert list(tmp_path.iterdir()) == []


def test_after_fuse_conv_bn():
    model = pspnet()
    fused_too_early = fuse_conv_bn(copy.deepcopy(model))
    with pytest.raises(UserError, match=r'^backbone\.stem: .*but branch_3x3\.norm is Identity.*convert before'):
        whole_model_convert(fused_too_early)


def test_before_fuse_conv_bn():
    model = pspnet().double()
    both = fuse_conv_bn(whole_model_convert(model))
    assert not any(isinstance(module, _BatchNorm) for module in both.modules())
    torch.testing.assert_close(both(X), branch_sum(model, X), **EXACT)


@pytest.mark.parametrize('trains', [True, False])
def test_converted_models_train_on_what_trained(trains):
    model = pspnet()
    model.requires_grad_(trains)
    converted = whole_model_convert(model)
    assert {parameter.requires_grad for parameter in converted.parameters()} == {trains}


def test_half_precision_model_keeps_its_dtype():
    model = pspnet().bfloat16()
    assert {parameter.dtype for parameter in whole_model_convert(model).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize('arguments', [('model.pth',), (pspnet(), 'deploy.pth'), (None,)])
def test_a_file_is_no_model(arguments):
    with pytest.raises(UserError, match=r'A model is converted, and .* is a .*Load a file into its model first'):
        whole_model_convert(*arguments)
