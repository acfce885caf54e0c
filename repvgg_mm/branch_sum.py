"""The sum of a block's branches in training, with batch statistics, in the memory of its 3x3 branch.

    out = BN(z) + BN(u) + BN(x),    z = conv3x3(x),    u = conv1x1(x)

Autograd would keep x, z and u for the backward pass; a plain convolution with BatchNorm keeps x and z. Here u, a ninth
of the work of z, is computed again. Activations are in channels_last, where oneDNN's convolutions need not reorder
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Geometry(NamedTuple):
    """Of a convolution."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class Norm(NamedTuple):
    """A BatchNorm in training: gamma, beta and the running statistics, all of shape (C,)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float


def branch_sum(
    x: Tensor, weight_3x3: Tensor, norm_3x3: Norm, weight_1x1: Tensor, norm_1x1: Norm, norm_identity: Norm | None,
    geometry: Geometry,
) -> Tensor:
    """BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x), each BatchNorm with the statistics of this batch.

    x is (N, C1, H, W), `geometry` that of the 3x3 convolution. Returns the sum (N, C2, H', W'), in channels_last, and
    updates the running statistics. Differentiable once in x, the kernels, and the weights and biases of the norms.
    """
    norms = [norm_3x3, norm_1x1]
    if norm_identity is not None:
        norms.append(norm_identity)

    running, affine = [], []
    for norm in norms:
        running.append(norm[2:])
        affine += [norm.weight, norm.bias]
    return _BranchSum.apply(geometry, running, x, weight_3x3, weight_1x1, *affine)


class _BranchSum(torch.autograd.Function):

    @staticmethod
    def forward(ctx, geometry, running, x, weight_3x3, weight_1x1, *affine):
        x = x.contiguous(memory_format=torch.channels_last)
        seen = centres(x, geometry.stride)                                   # by the 1x1 convolution
        z = torch.conv2d(x, weight_3x3, None, *geometry)                     # N, C2, H', W'
        u = torch.conv2d(seen, weight_1x1, groups=geometry.groups)           # N, C2, H', W'

        def normalise(i: int, before: Tensor, into: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Writes to `into`; returns it, the mean and 1 / sqrt(var + eps)."""
            gamma, beta = affine[2 * i:2 * i + 2]
            *buffers, momentum, eps = running[i]
            results = (into, torch.empty_like(gamma), torch.empty_like(gamma))
            return torch.native_batch_norm(before, gamma, beta, *buffers, True, momentum, eps, out=results)

        out, *mean_rstd = normalise(0, z, into=torch.empty_like(z))
        moments = [mean_rstd]
        others = (u, x)[:len(running) - 1]
        for i, before in enumerate(others, 1):
            normalised, *mean_rstd = normalise(i, before, into=u)  # after its own norm u is needed no more
            out += normalised
            moments.append(mean_rstd)

        gammas = affine[::2]
        ctx.save_for_backward(x, z, weight_3x3, weight_1x1, *gammas)
        ctx.geometry = geometry
        ctx.moments = moments
        ctx.eps = [part[-1] for part in running]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, z, weight_3x3, weight_1x1, *gammas = ctx.saved_tensors
        geometry, moments, eps = ctx.geometry, ctx.moments, ctx.eps
        needs = [ctx.needs_input_grad[2], True, False]  # of x, the kernel, a bias
        grad = grad.contiguous(memory_format=torch.channels_last)

        def through_norm(i: int, before: Tensor) -> list[Tensor]:
            """Gradients of the norm's input, weight and bias."""
            return torch.ops.aten.native_batch_norm_backward(
                grad, before, gammas[i], None, None, *moments[i], True, eps[i], [True, True, True])

        def through_conv(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> list[Tensor]:
            """Gradients of the convolution's input and kernel."""
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, *geometry[:3], False, [0, 0], geometry.groups, needs)[:2]

        grad_z, grad_gamma_3x3, grad_beta = through_norm(0, z)
        grad_x, grad_weight_3x3 = through_conv(grad_z, x, weight_3x3, geometry)
        del grad_z

        seen = centres(x, geometry.stride)
        u = torch.conv2d(seen, weight_1x1, groups=geometry.groups)
        grad_u, grad_gamma_1x1, _ = through_norm(1, u)
        without_stride = Geometry((1, 1), (0, 0), (1, 1), geometry.groups)
        grad_seen, grad_weight_1x1 = through_conv(grad_u, seen, weight_1x1, without_stride)
        del u, grad_u
        if grad_x is not None:
            centres(grad_x, geometry.stride).add_(grad_seen)

        # The norms are added up, so all have the same gradient of their bias.
        grads = [grad_gamma_3x3, grad_beta, grad_gamma_1x1, grad_beta]
        if len(gammas) == 3:
            grad_identity, grad_gamma_identity, _ = through_norm(2, x)
            grads += [grad_gamma_identity, grad_beta]
            if grad_x is not None:
                grad_x += grad_identity
        return None, None, grad_x, grad_weight_3x3, grad_weight_1x1, *grads


def centres(x: Tensor, stride: Sequence[int]) -> Tensor:
    """A view of x (N, C, H, W) at the centres of a strided convolution's windows: (N, C, H', W').

    A strided 1x1 convolution is one without stride on these. torch 2.13 needs that on a CPU: its backward pass in
    channels_last writes past its memory for fewer than 16 input channels, and the process crashes.
    """
    if tuple(stride) == (1, 1):
        return x
    rows, columns = stride
    return x[:, :, ::rows, ::columns]
