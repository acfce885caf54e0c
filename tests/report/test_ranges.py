"""Ranges of each block against the same numbers taken by hand, with numpy and torch.nn.functional."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import backbone, image, randomise_norms
from torch import nn
from torch.nn import functional as F

from repvgg_mm import Branch, Parts, fusible, whole_model_convert
from repvgg_mm.convert.blocks import named_branches
from repvgg_mm.report.ranges import FUSED, SAMPLE, block_ranges, kernel_share, labelled, range_of


def by_hand(*tensors: torch.Tensor) -> tuple[float, ...]:
    values = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])
    return values.min(), *np.percentile(values, [1, 99]), values.max()


def norm_by_hand(norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of each channel."""
    mean, var, weight, bias = (tensor.detach().numpy() for tensor in
                               (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    scale = weight / np.sqrt(var + norm.eps)
    return scale, bias - mean * scale


@pytest.fixture(scope='module')
def forms() -> tuple[nn.Module, nn.Module]:
    trained = backbone().double()
    return trained, whole_model_convert(trained)


def test_range_of_several_tensors():
    tensors = [image(3, 50), image(7, seed=2) * 3]
    assert range_of(*tensors) == pytest.approx(by_hand(*tensors), rel=1e-12)


def test_extremes_of_large_tensors_are_exact_and_percentiles_close():
    values = image(SAMPLE + 5, dtype=torch.float32)
    values[SAMPLE + 3], values[17] = 40, -50
    found, expected = range_of(values), by_hand(values)
    assert (found.low, found.high) == (-50, 40)
    assert found[1:3] == pytest.approx(expected[1:3], rel=0.02)


def test_half_precision_is_ranged_in_float32():
    assert range_of(torch.tensor([0.1, 0.3], dtype=torch.bfloat16)).high == pytest.approx(0.30078125)


def test_weights_of_every_branch_and_of_the_fused_kernel(forms):
    trained, deploy = forms
    ranges = {block.name: block for block in block_ranges(trained, deploy)}
    assert len(ranges) == 9 and all(not block.activations for block in ranges.values())
    block, found = trained.stage_3[1], ranges['stage_3.1']
    assert list(found.weights) == ['3x3', '1x1', 'identity', FUSED]
    assert list(ranges['stem'].weights) == ['3x3', '1x1', FUSED]
    for label, branch in (('3x3', block.branch_3x3), ('1x1', block.branch_1x1)):
        share = branch.conv.weight.detach().numpy() * norm_by_hand(branch.norm)[0][:, None, None, None]
        assert found.weights[label] == pytest.approx(by_hand(torch.from_numpy(share)), rel=1e-10)
    identity = torch.from_numpy(norm_by_hand(block.branch_norm)[0])
    assert found.weights['identity'] == pytest.approx(by_hand(identity), rel=1e-10)
    kernel = deploy.stage_3[1].branch_reparam.weight
    assert found.weights[FUSED] == pytest.approx(by_hand(kernel), rel=1e-10)
    channels = np.abs(kernel.detach().numpy()).reshape(len(kernel), -1).max(1)
    middle = np.sort(channels)[(len(channels) - 1) // 2]
    assert found.imbalance == pytest.approx(channels.max() / middle, rel=1e-10)


def test_shares_add_up_to_the_fused_kernel(forms):
    trained, deploy = forms
    for name, branches in named_branches(trained):
        kernel = deploy.get_submodule(name).branch_reparam.weight
        total = torch.zeros_like(kernel)
        for branch in branches:
            share = kernel_share(branch)
            if branch.conv is None:
                total[range(len(share)), range(len(share)), 1, 1] += share
            else:
                total += F.pad(share, [(3 - share.shape[-1]) // 2] * 4)
        torch.testing.assert_close(total, kernel, rtol=1e-10, atol=1e-12)


def test_activations_over_all_inputs(forms):
    trained, deploy = forms
    inputs = [image(1, 3, 48, 64, seed=3), image(2, 3, 33, 47, seed=4)]
    found = next(block for block in block_ranges(trained, deploy, inputs) if block.name == 'stage_2.1')
    block, seen = trained.stage_2[1], []
    with block.register_forward_pre_hook(lambda _module, args: seen.append(args[0])), torch.no_grad():
        for batch in inputs:
            trained(batch)

    def normalised(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        scale, shift = (torch.from_numpy(part)[:, None, None] for part in norm_by_hand(norm))
        return x * scale + shift

    parts = {
        '3x3': [normalised(F.conv2d(x, block.branch_3x3.conv.weight, padding=1), block.branch_3x3.norm) for x in seen],
        '1x1': [normalised(F.conv2d(x, block.branch_1x1.conv.weight), block.branch_1x1.norm) for x in seen],
        'identity': [normalised(x, block.branch_norm) for x in seen]}
    parts[FUSED] = [sum(batch) for batch in zip(*parts.values())]
    assert list(found.activations) == list(parts)
    for label, tensors in parts.items():
        assert found.activations[label] == pytest.approx(by_hand(*tensors), rel=1e-10), label


class Weighted(nn.Module):
    """act(norm1(conv1(x)) + 0.5 * norm2(conv2(x)) + norm3(x)), a block of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=bias) for bias in (False, True))
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(4) for _ in range(3))
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm1(self.conv1(x)) + 0.5 * self.norm2(self.conv2(x)) + self.norm3(x))


@fusible(f'{__name__}.Weighted')
def weighted_parts(block: Weighted) -> Parts:
    return Parts([Branch(block.conv1, block.norm1), Branch(block.conv2, block.norm2, 0.5), Branch(None, block.norm3)],
                 dict(act=block.act))


def test_a_registered_block_with_a_factor():
    torch.manual_seed(0)
    trained = randomise_norms(nn.Sequential(Weighted())).double().eval()
    deploy, x = whole_model_convert(trained), image(2, 4, 9, 9)
    found, = block_ranges(trained, deploy, [x])
    assert (found.name, list(found.weights)) == ('0', ['3x3', '3x3 (2)', 'identity', FUSED])
    block = trained[0]
    share = 0.5 * block.conv2.weight.detach().numpy() * norm_by_hand(block.norm2)[0][:, None, None, None]
    assert found.weights['3x3 (2)'] == pytest.approx(by_hand(torch.from_numpy(share)), rel=1e-10)
    assert found.activations['3x3 (2)'] == pytest.approx(by_hand(0.5 * block.norm2(block.conv2(x))), rel=1e-10)
    assert found.activations[FUSED] == pytest.approx(by_hand(deploy[0].branch_reparam(x)), rel=1e-10)


def test_branches_of_one_kind_are_numbered():
    sizes = [nn.Conv2d(2, 2, size) for size in (3, 1, 3)]
    branches = [Branch(conv, nn.BatchNorm2d(2)) for conv in sizes]
    identities = [Branch(None, nn.BatchNorm2d(2)) for _ in range(2)]
    labels = labelled([branches[0], identities[0], *branches[1:], identities[1]])
    assert list(labels) == ['3x3', 'identity', '1x1', '3x3 (2)', 'identity (2)']
    assert labels['3x3 (2)'] is branches[2] and labels['identity (2)'] is identities[1]


def test_models_are_left_as_they_were(forms):
    trained, deploy = forms
    trained.train()
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    block_ranges(trained, deploy, [image()])
    assert trained.training and all(torch.equal(tensor, state[name]) for name, tensor in trained.state_dict().items())
    assert not any(module._forward_hooks for model in forms for module in model.modules())
    assert trained.stem.fuse_on_the_fly
    trained.eval()


def test_a_model_in_deploy_form_has_no_ranges(forms):
    assert block_ranges(forms[1], forms[1], [image()]) == []
