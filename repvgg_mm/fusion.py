"""The arithmetic behind RepVGG: three linear branches are one 3x3 convolution (paper, section 3.3).

Tensors in, tensors out. With s = gamma / sqrt(var + eps), a BatchNorm on running statistics
is y = s * x + (beta - s * mean), so behind a convolution W it is the convolution s * W with
that bias. A 1x1 kernel is a 3x3 kernel that is zero around its centre; the identity is the
1x1 kernel that connects each channel with itself. Convolution is linear in its kernel, so
the sum of the branches is the convolution with the sum of the kernels and of the biases.

`fuse_branches` is that for RepVGG's own three branches, fast because blocks call it at every step;
`fuse_sum` for any number of branches with odd kernels, as blocks of other libraries have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ScaleShift(NamedTuple):
    """y = scale * x + shift, one number a channel: what a BatchNorm on running statistics does."""

    scale: Tensor  # C
    shift: Tensor  # C


def scale_shift_of_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> ScaleShift:
    """scale = weight / sqrt(var + eps), shift = bias - mean * scale; all of shape (C,).

    `weight` and `bias` are None for a BatchNorm with affine=False and then count as 1 and 0.
    """
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight

    if bias is None:
        shift = -mean * scale
    else:
        shift = torch.addcmul(bias, mean, scale, value=-1)
    return ScaleShift(scale, shift)


def fuse_branches(
    weight_3x3: Tensor,
    norm_3x3: ScaleShift,
    weight_1x1: Tensor,
    norm_1x1: ScaleShift,
    norm_identity: ScaleShift | None,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The kernel (C2, C1/groups, 3, 3) and bias (C2,) of the sum of the branches.

    `weight_3x3` is (C2, C1/groups, 3, 3), `weight_1x1` is (C2, C1/groups, 1, 1); without an
    identity branch `norm_identity` is None. Differentiable in every argument. The kernel is
    written once: the two small branches are added into its centre.
    """
    kernel = weight_3x3 * norm_3x3.scale[:, None, None, None]  # C2, C1/g, 3, 3
    centre = kernel[:, :, 1, 1]                                # C2, C1/g
    centre.addcmul_(weight_1x1[:, :, 0, 0], norm_1x1.scale[:, None])
    bias = norm_3x3.shift + norm_1x1.shift

    if norm_identity is not None:
        # Output channel c reads input channel c, which is number c % (C1/g) of its group.
        own_channel = centre.unflatten(0, (groups, -1)).diagonal(dim1=1, dim2=2)  # g, C1/g
        own_channel += norm_identity.scale.unflatten(0, (groups, -1))
        bias = bias + norm_identity.shift
    return kernel, bias


class LinearBranch(NamedTuple):
    """factor * (scale * (weight * x + bias) + shift), with * a convolution; the identity has no weight."""

    weight: Tensor | None               # C2, C1/groups, kH, kW, both odd
    norm: ScaleShift
    bias: Tensor | None = None          # C2
    factor: float | Tensor = 1.0


def fuse_sum(branches: Sequence[LinearBranch], kernel_size: Sequence[int], groups: int) -> tuple[Tensor, Tensor]:
    """The kernel (C2, C1/groups, *kernel_size) and bias (C2,) of the sum of any number of branches.

    kernel = sum of factor * scale * weight, each weight in the centre of the kernel;
    bias = sum of factor * (scale * bias + shift).
    """
    channels = len(branches[0].norm.scale)
    inputs = next(branch.weight.shape[1] for branch in branches if branch.weight is not None)
    kernel = branches[0].norm.scale.new_zeros(channels, inputs, *kernel_size)
    bias = kernel.new_zeros(channels)

    for branch in branches:
        weight = _identity_kernel(kernel, groups) if branch.weight is None else branch.weight
        scaled = weight * branch.norm.scale[:, None, None, None]
        _centre(kernel, weight.shape[2:]).add_(branch.factor * scaled)

        shift = branch.norm.shift
        if branch.bias is not None:
            shift = shift + branch.bias * branch.norm.scale
        bias += branch.factor * shift
    return kernel, bias


def _centre(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """A view of the middle of a kernel, of that height and width."""
    top, left = ((outer - inner) // 2 for outer, inner in zip(kernel.shape[2:], size))
    return kernel[:, :, top:top + size[0], left:left + size[1]]


def _identity_kernel(kernel: Tensor, groups: int) -> Tensor:
    """The 1x1 kernel (C, C/groups, 1, 1) that connects each channel with itself."""
    width = kernel.shape[1]
    one_group = torch.eye(width, dtype=kernel.dtype, device=kernel.device)
    return one_group.repeat(groups, 1)[:, :, None, None]
