"""One block: all its forms and ways to compute are the sum of the branches."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from helpers import assert_same_state, block, branch_sum, image, randomise_norms, snapshot, written_out
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from repvgg_mm import Branch, Parts, RepVGGBlock, UserError
from repvgg_mm.block import Conv1x1, SqueezeExcitation, branch_by_branch, fuse_blocks, fused_conv
from repvgg_mm.convert.foreign import fuse_parts

EXACT = dict(rtol=1e-10, atol=1e-10)

SHAPES = [dict(stride=stride, dilation=dilation, groups=groups, identity=identity, **se)
          for stride in (1, 2) for dilation in (1, 2, 4) for groups in (1, 2, 4)
          for se in (dict(se_channels=0), dict(se_channels=3), dict(se_channels=3, se_after_act=True))
          for identity in ((True, False) if stride == 1 else (False,))]


def name_of(options: dict) -> str:
    return '-'.join(f'{key}{int(value)}' for key, value in options.items())


def expected_output(block: RepVGGBlock, x: Tensor) -> Tensor:
    out = written_out(block, x)
    if block.se_after_act:
        out = out.clamp(min=0)
    if isinstance(block.se_layer, SqueezeExcitation):
        reduce, expand = block.se_layer.conv1.conv, block.se_layer.conv2.conv
        hidden = F.linear(out.flatten(2).mean(2), reduce.weight.flatten(1), reduce.bias).clamp(min=0)  # N, C_hidden
        attention = 1 / (1 + torch.exp(-F.linear(hidden, expand.weight.flatten(1), expand.bias)))      # N, C
        out = out * attention[:, :, None, None]
    return out if block.se_after_act else out.clamp(min=0)


def gradients(out: Tensor, block: RepVGGBlock, x: Tensor) -> dict[str, Tensor]:
    """Of an arbitrary scalar of `out`, by every parameter and by x."""
    loss = (out * image(*out.shape, seed=9)).sum()
    named = dict(block.named_parameters(), x=x)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()))))


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('options', SHAPES, ids=name_of)
def test_every_way_is_the_sum_of_the_branches(options, batch):
    training = block(8, 8, **options)
    x = image(batch, 8, 9, 14)
    expected = expected_output(training, x)
    assert expected.shape == (batch, 8, -(-9 // options['stride']), -(-14 // options['stride']))

    deploy = copy.deepcopy(training)
    deploy.switch_to_deploy()

    torch.testing.assert_close(branch_sum(training, x), expected, **EXACT)
    torch.testing.assert_close(training(x), expected, **EXACT)
    torch.testing.assert_close(deploy(x), expected, **EXACT)


@pytest.mark.parametrize('padding_mode', ['zeros', 'reflect', 'replicate', 'circular'])
@pytest.mark.parametrize('dilation', [1, 2])
def test_padding_mode(padding_mode, dilation):
    training = block(4, 4, identity=True, padding_mode=padding_mode, dilation=dilation)
    x = image(2, 4, 7, 10)
    expected = expected_output(training, x)
    deploy = copy.deepcopy(training)
    deploy.switch_to_deploy()

    torch.testing.assert_close(training(x), expected, **EXACT)
    torch.testing.assert_close(deploy(x), expected, **EXACT)
    assert deploy.branch_reparam.padding_mode == padding_mode


@pytest.mark.parametrize('in_channels, out_channels', [(3, 8), (8, 12)])
def test_other_number_of_output_channels(in_channels, out_channels):
    training = block(in_channels, out_channels, stride=2)
    x = image(2, in_channels, 9, 14)
    expected = expected_output(training, x)
    training.switch_to_deploy()
    torch.testing.assert_close(training(x), expected, **EXACT)


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('eps', [1e-5, 0.1])
def test_norm_options(affine, eps):
    training = block(identity=True, norm=partial(nn.BatchNorm2d, affine=affine, eps=eps))
    x = image(2, 8, 7, 10)
    expected = expected_output(training, x)
    training.switch_to_deploy()
    torch.testing.assert_close(training(x), expected, **EXACT)


def test_float32():
    training = block(32, 32, identity=True, dtype=torch.float32)
    x = image(2, 32, 9, 14, dtype=torch.float32)
    expected = expected_output(copy.deepcopy(training).double(), x.double())
    training.switch_to_deploy()
    assert (training(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('options', SHAPES, ids=name_of)
def test_gradients_with_frozen_statistics(options):
    training = block(8, 8, **options)
    x = image(2, 8, 9, 14).requires_grad_()
    expected = gradients(expected_output(training, x), training, x)

    torch.testing.assert_close(gradients(training(x), training, x), expected, **EXACT)
    torch.testing.assert_close(gradients(branch_sum(training, x), training, x), expected, **EXACT)


def test_frozen_statistics_in_training_mode():
    training = block(8, 8, identity=True).train()
    for module in training.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = image(2, 8, 9, 14).requires_grad_()
    before = snapshot(training)
    expected = expected_output(training, x)

    torch.testing.assert_close(training(x), expected, **EXACT)
    torch.testing.assert_close(gradients(training(x), training, x), gradients(expected, training, x), **EXACT)
    assert_same_state(training, before)


def test_one_norm_on_batch_statistics_is_not_fused():
    training = block(8, 8, identity=True)
    training.branch_1x1.norm.train()
    x = image(2, 8, 9, 14)
    before = snapshot(training)

    out = training(x)

    first = copy.deepcopy(training)
    first.load_state_dict(before)
    expected = first.branch_3x3(x) + first.branch_1x1(x) + first.branch_norm(x)
    torch.testing.assert_close(out, expected.relu(), **EXACT)
    assert training.branch_1x1.norm.num_batches_tracked == 1


class Counted(Conv1x1):
    """A convolution that counts its calls."""

    calls = 0

    def _conv_forward(self, *args: Tensor | None) -> Tensor:
        self.calls += 1
        return super()._conv_forward(*args)


def test_fuses_on_the_fly_only_outside_branch_by_branch():
    training = block(8, 8, identity=True)
    counted = training.branch_1x1.conv = Counted(8, 8, 1, bias=False).double()
    training(image(1, 8, 5, 5))
    assert counted.calls == 0
    with pytest.raises(ZeroDivisionError), branch_by_branch(training):
        training(image(1, 8, 5, 5))
        raise ZeroDivisionError
    assert counted.calls == 1
    training(image(1, 8, 5, 5))
    assert counted.calls == 1


@pytest.mark.parametrize('mode', ['training', 'evaluation', 'frozen'])
@pytest.mark.parametrize('place', ['branch_3x3', 'branch_1x1.conv', 'branch_norm'])
def test_hooks_on_layers_are_called(mode, place):
    """And their results count, as where torch computes a pruned weight before each call."""
    training = block(8, 8, identity=True).train(mode == 'training').requires_grad_(mode != 'evaluation')
    x = image(2, 8, 5, 5)
    training(x)
    training.get_submodule(place).register_forward_hook(lambda module, inputs, output: output * 3)
    with branch_by_branch(training):
        expected = training(x)
    for _ in range(2):
        torch.testing.assert_close(training(x), expected, **EXACT)


@pytest.mark.parametrize('mode', ['training', 'evaluation', 'frozen'])
def test_backward_hooks_on_layers_are_called(mode):
    training, calls = block(8, 8, identity=True).train(mode == 'training'), []
    x = image(2, 8, 5, 5).requires_grad_()
    training.requires_grad_(mode != 'frozen')
    training.branch_1x1.conv.register_full_backward_hook(lambda *gradients: calls.append(1))
    training(x).sum().backward()
    assert calls == [1]


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def double_its_forward(training: RepVGGBlock) -> None:
    conv = training.branch_3x3.conv
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)


@pytest.mark.parametrize('mode', ['training', 'evaluation'])
@pytest.mark.parametrize('change', [
    lambda training: setattr(training.branch_3x3, 'conv', Doubled(8, 8, 3, padding=1, bias=False)),
    lambda training: setattr(training, 'branch_norm', Shifted(8)), double_its_forward])
def test_layers_that_compute_something_else_are_called(change, mode):
    """Such as adapters that are put in a convolution's place."""
    training = block(8, 8, identity=True)
    change(training)
    training.double().train(mode == 'training')
    x = image(2, 8, 5, 5)
    with branch_by_branch(training):
        expected = training(x)
    for _ in range(2):
        torch.testing.assert_close(training(x), expected, **EXACT)


def pruned(conv: nn.Conv2d) -> Tensor:
    prune.random_unstructured(conv, 'weight', amount=0.5)
    return conv.weight_orig


def weight_normed(conv: nn.Conv2d) -> Tensor:
    nn.utils.parametrizations.weight_norm(conv)
    return conv.parametrizations.weight.original0


@pytest.mark.parametrize('trained', [True, False])
@pytest.mark.parametrize('parametrised', [pruned, weight_normed])
def test_kernels_that_torch_computes_from_others(parametrised, trained):
    training, x = block(8, 8, identity=True).requires_grad_(trained), image(2, 8, 5, 5)
    origin = parametrised(training.branch_1x1.conv)
    for factor in (1, 2, 3):
        origin.data *= factor
        with branch_by_branch(training):
            expected = training(x)
        torch.testing.assert_close(training(x), expected, **EXACT)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('momentum', [0.1, 0.3, None])
def test_batch_statistics(with_cp, momentum):
    training = block(8, 8, identity=True, with_cp=with_cp, norm=partial(nn.BatchNorm2d, momentum=momentum)).train()
    x = image(2, 8, 9, 14).requires_grad_()
    before = copy.deepcopy(training)
    factor = 1. if momentum is None else momentum  # None is the mean over all batches, here the first

    out = training(x)
    found = gradients(out, training, x)

    branches = [(training.branch_3x3.norm, before.branch_3x3.norm, training.branch_3x3.conv(x)),
                (training.branch_1x1.norm, before.branch_1x1.norm, training.branch_1x1.conv(x)),
                (training.branch_norm, before.branch_norm, x)]
    expected = torch.zeros_like(out)
    for norm, norm_before, y in branches:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        standard = (y - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
        expected = expected + standard * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(
            norm.running_mean, norm_before.running_mean.lerp(mean.detach(), factor), **EXACT)
        torch.testing.assert_close(
            norm.running_var, norm_before.running_var.lerp(y.detach().var((0, 2, 3)), factor), **EXACT)
        assert norm.num_batches_tracked == 1
    torch.testing.assert_close(out, expected.relu(), **EXACT)
    torch.testing.assert_close(found, gradients(expected.relu(), training, x), **EXACT)


@pytest.mark.parametrize('training_mode', [True, False])
@pytest.mark.parametrize('deploy', [True, False])
def test_with_cp_changes_nothing_but_memory(training_mode, deploy):
    plain = block(8, 8, identity=True, se_channels=3)
    if deploy:
        plain.switch_to_deploy()
    plain.train(training_mode)
    checkpointed = copy.deepcopy(plain)
    checkpointed.with_cp = True
    x = image(2, 8, 9, 14).requires_grad_()

    expected, found = plain(x), checkpointed(x)

    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients(found, checkpointed, x), gradients(expected, plain, x), **EXACT)
    assert_same_state(checkpointed, snapshot(plain))
    assert all(norm.track_running_stats for norm in checkpointed.modules() if isinstance(norm, nn.BatchNorm2d))


def test_with_cp_saves_no_branch_outputs():
    def saved_bytes(with_cp: bool) -> int:
        sizes = []
        model = block(8, 8, identity=True, with_cp=with_cp).train()
        x = image(2, 8, 32, 32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            model(x)
        return sum(sizes)

    assert saved_bytes(with_cp=True) < saved_bytes(with_cp=False) / 2


def test_with_cp_without_gradients():
    training = block(8, 8, identity=True, with_cp=True)
    x = image(1, 8, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(training(x), expected_output(training, x), **EXACT)


def test_switching_twice_is_switching_once():
    switched = block(8, 8, identity=True)
    switched.switch_to_deploy()
    before, parameter = snapshot(switched), switched.branch_reparam.weight
    switched.switch_to_deploy()
    assert switched.branch_reparam.weight is parameter
    assert_same_state(switched, before)


@pytest.mark.parametrize('identity', [True, False])
def test_nothing_of_the_branches_is_left(identity):
    switched = block(8, 8, identity=identity, se_channels=3)
    switched.switch_to_deploy()
    built = RepVGGBlock(8, 8, identity=identity, se_channels=3, deploy=True).double().eval()

    assert switched.deploy and built.deploy
    assert sorted(vars(switched)) == sorted(vars(built))
    assert sorted(name for name, _ in switched.named_modules()) == sorted(name for name, _ in built.named_modules())
    assert not any(hasattr(switched, name) for name in ('branch_3x3', 'branch_1x1', 'branch_norm'))
    built.load_state_dict(switched.state_dict(), strict=True)
    x = image(2, 8, 5, 7)
    torch.testing.assert_close(built(x), switched(x), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_dtype_and_memory_format_are_kept(dtype, memory_format):
    switched = block(8, 8, identity=True, dtype=dtype).to(memory_format=memory_format)
    switched.switch_to_deploy()
    weight, bias = switched.branch_reparam.weight, switched.branch_reparam.bias
    assert weight.dtype == bias.dtype == dtype
    assert weight.is_contiguous(memory_format=memory_format)
    assert weight.is_leaf and bias.is_leaf and weight.grad_fn is None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_fused_in_float32_and_rounded_last(dtype):
    half = block(16, 16, identity=True, dtype=dtype)
    kernel, bias = copy.deepcopy(half).float().fuse()
    half.switch_to_deploy()
    torch.testing.assert_close(half.branch_reparam.weight, kernel.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(half.branch_reparam.bias, bias.to(dtype), rtol=0, atol=0)
    in_half = half.branch_reparam.weight - kernel
    assert in_half.abs().max() <= torch.finfo(dtype).eps / 2 * kernel.abs().max()


@pytest.mark.parametrize('conv_trains', [True, False])
@pytest.mark.parametrize('norm_trains', [True, False])
def test_requires_grad_is_kept(conv_trains, norm_trains):
    switched = block(8, 8, identity=True)
    switched.branch_3x3.conv.requires_grad_(conv_trains)
    switched.branch_3x3.norm.requires_grad_(norm_trains)
    switched.switch_to_deploy()
    assert switched.branch_reparam.weight.requires_grad == conv_trains
    assert switched.branch_reparam.bias.requires_grad == norm_trains


@pytest.mark.parametrize('training', [True, False])
def test_training_mode_is_kept(training):
    switched = block(8, 8, identity=True).train(training)
    switched.switch_to_deploy()
    assert all(module.training == training for module in switched.modules())


@pytest.mark.parametrize('revert', [True, False])
@pytest.mark.parametrize('identity', [True, False])
def test_sync_batch_norm(revert, identity):
    training = block(8, 8, identity=identity, norm=nn.SyncBatchNorm)
    if revert:
        training = revert_sync_batchnorm(training)
        assert type(training.branch_3x3.norm).__name__ == '_BatchNormXd'
    x = image(2, 8, 5, 7)
    expected = expected_output(training, x)
    torch.testing.assert_close(training(x), expected, **EXACT)
    training.switch_to_deploy()
    torch.testing.assert_close(training(x), expected, **EXACT)


@pytest.mark.parametrize('layer', ['branch_3x3.norm', 'branch_1x1.norm', 'branch_norm'])
@pytest.mark.parametrize('buffer, value', [
    ('running_var', float('nan')), ('running_var', -1e-3), ('running_var', float('inf')),
    ('running_mean', float('nan')), ('running_mean', float('-inf'))])
def test_damaged_statistics(layer, buffer, value):
    damaged = block(8, 8, identity=True)
    getattr(damaged.get_submodule(layer), buffer)[5] = value
    before = snapshot(damaged)
    with pytest.raises(UserError, match=rf'must be finite.*but {layer} has mean .* in channel 5 \(1 of 8 channels'):
        damaged.switch_to_deploy()
    assert not damaged.deploy
    assert_same_state(damaged, before)


def test_variance_zero_is_sound():
    training = block(8, 8, identity=True)
    training.branch_norm.running_var[0] = 0
    x = image(1, 8, 5, 7)
    expected = expected_output(training, x)
    training.switch_to_deploy()
    assert (training(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_a_failing_block_leaves_all_blocks_unchanged():
    model = nn.Sequential(block(), nn.Sequential(block()))
    model[1][0].branch_1x1.norm.running_var[2] = float('nan')
    before = snapshot(model)
    with pytest.raises(UserError, match=r'^1\.0: .*branch_1x1\.norm has mean'):
        fuse_blocks(model)
    assert_same_state(model, before)


@pytest.mark.parametrize('norm, kind', [
    (partial(nn.GroupNorm, 2), 'GroupNorm'), (nn.LayerNorm, 'LayerNorm'),
    (nn.InstanceNorm2d, 'InstanceNorm2d'), (lambda channels: nn.Identity(), 'Identity')])
def test_other_norms_are_refused(norm, kind):
    with pytest.raises(UserError, match=rf"but branch_3x3\.norm is {kind}\. Use norm_cfg=dict\(type='BN'\)"):
        RepVGGBlock(8, 8, norm=norm)


def test_norm_without_running_statistics_is_refused():
    with pytest.raises(UserError, match=r'branch_3x3\.norm keeps none \(track_running_stats=False\)'):
        RepVGGBlock(8, 8, norm=partial(nn.BatchNorm2d, track_running_stats=False))


@pytest.mark.parametrize('in_channels, stride', [(4, 1), (8, 2)])
def test_impossible_identity(in_channels, stride):
    with pytest.raises(UserError, match=f'got {in_channels} to 8 channels and stride {stride}. Pass identity=False'):
        RepVGGBlock(in_channels, 8, stride=stride, identity=True)


def test_activation_is_applied_in_every_form():
    training = block(8, 8, identity=True, act=partial(nn.LeakyReLU, 0.3))
    x = image(2, 8, 5, 7)
    expected = F.leaky_relu(written_out(training, x), 0.3)
    torch.testing.assert_close(training(x), expected, **EXACT)
    training.switch_to_deploy()
    torch.testing.assert_close(training(x), expected, **EXACT)


def test_on_the_fly_under_autocast():
    training = block(16, 16, identity=True, dtype=torch.float32)
    x = image(2, 16, 9, 14, dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = training(x)
    expected = expected_output(training, x)
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() <= 0.02 * expected.abs().max()


def test_fuse_follows_changed_statistics():
    """Nothing is cached between two calls."""
    training = block(8, 8, identity=True)
    x = image(1, 8, 5, 7)
    training(x)
    randomise_norms(training, seed=5)
    torch.testing.assert_close(training(x), expected_output(training, x), **EXACT)


@pytest.mark.parametrize('conv_bias, norm_bias', [(True, False), (False, True), (False, False), (None, True)])
def test_the_fused_bias_trains_where_one_of_its_branch_does(conv_bias, norm_bias):
    conv, norm = nn.Conv2d(2, 2, 3, bias=conv_bias is not None), nn.BatchNorm2d(2)
    norm.bias.requires_grad_(norm_bias)
    if conv_bias is not None:
        conv.bias.requires_grad_(conv_bias)
    fused = fused_conv(conv, norm, torch.ones(2, 2, 3, 3), torch.ones(2))
    assert fused.bias.requires_grad == (bool(conv_bias) or norm_bias)
    assert fused.weight.requires_grad and not fused.weight.is_meta


def test_blocks_of_both_kinds_keep_what_trains():
    """One rule for this package's blocks and for those of other libraries."""
    for conv_trains, norm_trains in ((True, False), (False, True)):
        own = block(identity=True)
        for module, trains in ((own.branch_3x3.conv, conv_trains), (own.branch_3x3.norm, norm_trains)):
            module.requires_grad_(trains)
        parts = Parts([Branch(*own.branch_3x3), Branch(*own.branch_1x1), Branch(None, own.branch_norm)], {})
        foreign = fuse_parts(parts).branch_reparam
        own.switch_to_deploy()
        for name, parameter in own.branch_reparam.named_parameters():
            other = getattr(foreign, name)
            assert parameter.requires_grad == other.requires_grad == (conv_trains if name == 'weight' else norm_trains)
            torch.testing.assert_close(parameter, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('channels', [3, 15, 16])
def test_which_1x1_convolutions_stride_in_torchs_own_way(channels, monkeypatch):
    """With fewer than 16 channels in channels_last that of torch 2.13 writes behind its memory: no test of results."""
    taken = []
    monkeypatch.setattr('repvgg_mm.block.centres', lambda x, stride: taken.append(stride) or x[:, :, ::2, ::2])
    conv = Conv1x1(channels, 4, 1, stride=2)
    conv(image(1, channels, 8, 8, dtype=torch.float32))
    assert bool(taken) == (channels < 16)
