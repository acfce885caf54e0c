"""The arithmetic behind RepVGG: three linear branches are one 3x3 convolution (paper, section 3.3).

Tensors in, tensors out. With s = gamma / sqrt(var + eps), a BatchNorm on running statistics
is y = s * x + (beta - s * mean), so behind a convolution W it is the convolution s * W with
that bias. A 1x1 kernel is a 3x3 kernel that is zero around its centre; the identity is the
1x1 kernel that connects each channel with itself. Convolution is linear in its kernel, so
the sum of the branches is the convolution with the sum of the kernels and of the biases.
"""

from __future__ import annotations

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
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
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
