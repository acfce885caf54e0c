"""The arithmetic of fusing, on tensors."""

from __future__ import annotations

import pytest
import torch
from helpers import image
from torch import Tensor, nn
from torch.nn import functional as F

from repvgg_mm.fusion import LinearBranch, ScaleShift, fuse_branches, fuse_sum, scale_shift_of_norm

EXACT = dict(rtol=1e-10, atol=1e-10)


def random_norm(channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """mean, var, weight, bias, eps."""
    values = image(4, channels, seed=seed)
    return values[0], values[1].abs() + 0.1, values[2] + 2, values[3], 0.03


def test_hand_worked_kernel():
    # s = weight / sqrt(var + eps), shift = bias - mean * s, with eps = 1:
    norm_3x3 = scale_shift_of_norm(*torch.tensor([[1., 2.], [3., 8.], [4., 6.], [1., 0.]]), eps=1.)  # s = 2, 2
    norm_1x1 = scale_shift_of_norm(*torch.tensor([[0., 1.], [0., 3.], [3., 4.], [5., 5.]]), eps=1.)  # s = 3, 2
    norm_identity = scale_shift_of_norm(*torch.tensor([[2., 0.], [15., 0.], [8., 1.], [0., 1.]]), eps=1.)  # s = 2, 1
    weight_3x3 = torch.stack([torch.stack([torch.arange(9.).view(3, 3), torch.ones(3, 3)]),
                              torch.stack([torch.zeros(3, 3), 2 * torch.ones(3, 3)])])
    weight_1x1 = torch.tensor([[10., 20.], [30., 40.]])[:, :, None, None]

    kernel, bias = fuse_branches(weight_3x3, norm_3x3, weight_1x1, norm_1x1, norm_identity, groups=1)

    expected = torch.tensor([
        [[[0., 2., 4.], [6., 8. + 30. + 2., 10.], [12., 14., 16.]], [[2., 2., 2.], [2., 2. + 60., 2.], [2., 2., 2.]]],
        [[[0., 0., 0.], [0., 60., 0.], [0., 0., 0.]], [[4., 4., 4.], [4., 4. + 80. + 1., 4.], [4., 4., 4.]]]])
    torch.testing.assert_close(kernel, expected)
    torch.testing.assert_close(bias, torch.tensor([-1. + 5. - 4., -4. + 3. + 1.]))


@pytest.mark.parametrize('affine', [True, False])
def test_scale_and_shift_are_batch_norm(affine):
    mean, var, weight, bias, eps = random_norm(6, seed=1)
    if not affine:
        weight = bias = None
    x = image(2, 6, 5, 7)

    scale, shift = scale_shift_of_norm(mean, var, weight, bias, eps)

    expected = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], expected, **EXACT)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('identity', [True, False])
def test_one_convolution_is_the_sum_of_the_branches(groups, identity):
    norms = [random_norm(8, seed) for seed in range(3)]
    weight_3x3, weight_1x1 = image(8, 8 // groups, 3, 3, seed=4), image(8, 8 // groups, 1, 1, seed=5)
    x = image(2, 8, 6, 9)

    kernel, bias = fuse_branches(
        weight_3x3, scale_shift_of_norm(*norms[0]), weight_1x1, scale_shift_of_norm(*norms[1]),
        scale_shift_of_norm(*norms[2]) if identity else None, groups)

    def normalise(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    expected = normalise(F.conv2d(x, weight_3x3, padding=1, groups=groups), *norms[0])
    expected = expected + normalise(F.conv2d(x, weight_1x1, groups=groups), *norms[1])
    if identity:
        expected = expected + normalise(x, *norms[2])
    torch.testing.assert_close(F.conv2d(x, kernel, bias, padding=1, groups=groups), expected, **EXACT)


@pytest.mark.parametrize('groups', [1, 2, 4, 8])
def test_identity_reads_the_own_channel_of_each_group(groups):
    nothing = ScaleShift(torch.zeros(8), torch.zeros(8))
    identity = ScaleShift(torch.arange(1., 9.), torch.arange(8.))

    kernel, bias = fuse_branches(torch.ones(8, 8 // groups, 3, 3), nothing, torch.ones(8, 8 // groups, 1, 1), nothing,
                                 identity, groups)

    # Dense kernel of the identity: the unit matrix in the centre, one group's columns at a time.
    dense = torch.zeros(8, 8, 3, 3)
    dense[:, :, 1, 1] = torch.diag(identity.scale)
    blocks = torch.stack([row[group] for row, group in zip(
        dense.unflatten(1, (groups, -1)), torch.arange(groups).repeat_interleave(8 // groups))])
    torch.testing.assert_close(kernel, blocks, rtol=0, atol=0)
    torch.testing.assert_close(
        kernel, nn.init.dirac_(torch.empty(8, 8 // groups, 3, 3), groups) * identity.scale[:, None, None, None],
        rtol=0, atol=0)
    torch.testing.assert_close(bias, identity.shift, rtol=0, atol=0)


def test_arguments_are_not_changed():
    tensors = [image(4, 4, 3, 3, seed=1), image(4, 4, 1, 1, seed=2), *image(6, 4, seed=3).unbind()]
    before = [tensor.clone() for tensor in tensors]
    weight_3x3, weight_1x1, *norms = tensors

    fuse_branches(weight_3x3, ScaleShift(*norms[:2]), weight_1x1, ScaleShift(*norms[2:4]), ScaleShift(*norms[4:]), 1)

    torch.testing.assert_close(tensors, before, rtol=0, atol=0)


@pytest.mark.parametrize('groups', [1, 2])
def test_differentiable_in_every_argument(groups):
    def fuse(weight_3x3: Tensor, weight_1x1: Tensor, *norms: Tensor) -> tuple[Tensor, Tensor]:
        scale_shifts = [scale_shift_of_norm(mean, var, weight, bias, eps=0.1)
                        for mean, var, weight, bias in zip(norms[::4], norms[1::4], norms[2::4], norms[3::4])]
        return fuse_branches(weight_3x3, scale_shifts[0], weight_1x1, scale_shifts[1], scale_shifts[2], groups)

    tensors = [image(4, 4 // groups, 3, 3, seed=1), image(4, 4 // groups, 1, 1, seed=2),
               *(tensor for seed in range(3) for tensor in random_norm(4, seed)[:4])]
    assert torch.autograd.gradcheck(fuse, [tensor.clone().requires_grad_() for tensor in tensors])


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('identity', [True, False])
def test_any_number_of_branches_is_one_convolution(groups, identity):
    """Kernels of several odd sizes, square or not, with a bias and factors of a number and of one a layer."""
    sizes = [(5, 5), (3, 1), (1, 1), (1, 1)]
    x = image(2, 8, 7, 9)
    branches, expected = [], 0
    for i, (rows, columns) in enumerate(sizes):
        weight, bias = image(8, 8 // groups, rows, columns, seed=i), image(8, seed=10 + i) if i % 2 else None
        factor = [1.0, 0.5, torch.tensor([2.]), -1.0][i]
        norm = random_norm(8, seed=20 + i)
        branches.append(LinearBranch(weight, scale_shift_of_norm(*norm), bias, factor))
        out = F.conv2d(x, weight, bias, padding=(rows // 2, columns // 2), groups=groups)
        expected = expected + factor * F.batch_norm(out, *norm[:4], training=False, eps=norm[4])
    if identity:
        norm = random_norm(8, seed=30)
        branches.append(LinearBranch(None, scale_shift_of_norm(*norm), factor=0.25))
        expected = expected + 0.25 * F.batch_norm(x, *norm[:4], training=False, eps=norm[4])

    kernel, bias = fuse_sum(branches, (5, 5), groups)

    torch.testing.assert_close(F.conv2d(x, kernel, bias, padding=2, groups=groups), expected, **EXACT)


@pytest.mark.parametrize('groups', [1, 2])
def test_the_general_sum_is_the_fast_one_for_three_branches(groups):
    norms = [scale_shift_of_norm(*random_norm(8, seed)) for seed in range(3)]
    weight_3x3, weight_1x1 = image(8, 8 // groups, 3, 3, seed=4), image(8, 8 // groups, 1, 1, seed=5)
    fast = fuse_branches(weight_3x3, norms[0], weight_1x1, norms[1], norms[2], groups)
    general = fuse_sum([
        LinearBranch(weight_3x3, norms[0]), LinearBranch(weight_1x1, norms[1]), LinearBranch(None, norms[2])],
        (3, 3), groups)
    for found, expected in zip(general, fast, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
