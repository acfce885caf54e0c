"""The sum of a block's branches in training, with batch statistics, at little more than the cost of its 3x3 branch.

The branches 1x1 and identity see the same input x, of mean m and covariance V over batch and positions. So the
statistics of u = W x follow without computing u: its mean is W m, its variance the diagonal of W V W^T; those of the
identity are m and the diagonal of V. With a = gamma / sqrt(var + eps) of each branch, both together are one 1x1
convolution, added once to the normalised 3x3 branch:

    out = BN(z) + K x + const,    z = conv3x3(x),    K = diag(a_1x1) W + diag(a_identity)

Backward, with g the gradient of `out` and G = sum of g x^T over batch and positions, every gradient of the two small
branches is a function of G, V and m, and x receives K^T g + P x + const besides what the 3x3 branch returns. x and z
are kept for that, as a plain convolution with BatchNorm keeps them, and matrices of C x C numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Geometry(NamedTuple):
    """Of the 3x3 convolution."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class Statistics(NamedTuple):
    """Mean and biased variance over batch and positions of one branch before its BatchNorm; both of shape (C,)."""

    mean: Tensor
    var: Tensor


def branch_sum(
    x: Tensor,
    weight_3x3: Tensor, affine_3x3: tuple[Tensor, Tensor],
    weight_1x1: Tensor, affine_1x1: tuple[Tensor, Tensor],
    affine_identity: tuple[Tensor, Tensor] | None,
    eps: Sequence[float],
    geometry: Geometry,
) -> tuple[Tensor, Statistics, Statistics, Statistics | None]:
    """BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x), each BatchNorm with the statistics of this batch.

    x is contiguous, (N, C1, H, W); each `affine` is a BatchNorm's weight and bias; `eps` has one number a branch.
    Returns the sum (N, C2, H', W') and the statistics of each branch. Differentiable once in x and all parameters.
    """
    identity = affine_identity or (None, None)
    out, *moments = _BranchSum.apply(
        x, weight_3x3, *affine_3x3, weight_1x1, *affine_1x1, *identity, tuple(eps), geometry)
    statistics = [Statistics(*moments[i:i + 2]) for i in range(0, len(moments), 2)]
    return out, *statistics, *[None] * (3 - len(statistics))


class _BranchSum(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight_3x3, gamma_3x3, beta_3x3, weight_1x1, gamma_1x1, beta_1x1, gamma_id, beta_id,
                eps, geometry):
        groups = geometry.groups
        z = torch.conv2d(x, weight_3x3, None, *geometry)                          # N, C2, H', W'
        seen = _seen_by_1x1(x, geometry.stride)                                   # N, C1, H', W'
        count = z.numel() // z.shape[1]
        mean = seen.sum((0, 2, 3)).double() / count                               # C1
        by_group = mean.unflatten(0, (groups, -1))                                # g, C1/g
        cov = _outer_sum(seen, seen, groups).double() / count                     # g, C1/g, C1/g
        cov -= by_group[:, :, None] * by_group[:, None, :]
        kernel = weight_1x1[:, :, 0, 0].double().unflatten(0, (groups, -1))       # g, C2/g, C1/g
        mean_1x1 = (kernel @ by_group[:, :, None]).flatten()                      # C2
        var_1x1 = ((kernel @ cov) * kernel).sum(2).flatten().clamp_(min=0)        # C2
        rstd_1x1 = (var_1x1 + eps[1]).rsqrt()
        scale_1x1 = gamma_1x1 * rstd_1x1
        small = scale_1x1.unflatten(0, (groups, -1))[:, :, None] * kernel         # K: g, C2/g, C1/g
        bias = beta_3x3 + beta_1x1 - scale_1x1 * mean_1x1
        rstd_id = moments_id = None
        if gamma_id is not None:
            var_id = cov.diagonal(dim1=1, dim2=2).flatten().clamp(min=0)
            rstd_id = (var_id + eps[2]).rsqrt()
            scale_id = gamma_id * rstd_id
            small.diagonal(dim1=1, dim2=2).add_(scale_id.unflatten(0, (groups, -1)))
            bias = bias + beta_id - scale_id * mean
            moments_id = mean, var_id
        small = small.to(x.dtype)
        out, mean_3x3, rstd_3x3 = torch.native_batch_norm(
            z, gamma_3x3, bias.to(x.dtype), None, None, True, 0.0, eps[0])
        _add_product(out, small, seen, groups)

        ctx.save_for_backward(x, z, weight_3x3, gamma_3x3, mean_3x3, rstd_3x3, kernel, gamma_1x1, mean_1x1, rstd_1x1,
                              gamma_id, rstd_id, mean, cov, small)
        ctx.eps, ctx.geometry = eps, geometry
        moments = [mean_3x3, rstd_3x3.double().pow(-2) - eps[0], mean_1x1, var_1x1, *(moments_id or ())]
        ctx.mark_non_differentiable(*moments)
        return out, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        (x, z, weight_3x3, gamma_3x3, mean_3x3, rstd_3x3, kernel, gamma_1x1, mean_1x1, rstd_1x1,
         gamma_id, rstd_id, mean, cov, small) = ctx.saved_tensors
        eps, geometry = ctx.eps, ctx.geometry
        groups, count = geometry.groups, z.numel() // z.shape[1]
        grad = grad.contiguous()
        grad_z, grad_gamma_3x3, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, z, gamma_3x3, None, None, mean_3x3, rstd_3x3, True, eps[0], [True, True, True])
        grad_x, grad_weight_3x3, _ = torch.ops.aten.convolution_backward(
            grad_z, x, weight_3x3, None, *geometry[:3], False, [0, 0], groups, [ctx.needs_input_grad[0], True, False])

        def columns(vector: Tensor) -> Tensor:
            return vector.double().unflatten(0, (groups, -1))[:, :, None]         # g, C/g, 1

        seen = _seen_by_1x1(x, geometry.stride)
        outer = _outer_sum(grad, seen, groups).double()                           # G: g, C2/g, C1/g
        sums = columns(grad_beta)
        rstd, scale = columns(rstd_1x1), columns(gamma_1x1 * rstd_1x1)
        grad_gamma_1x1 = rstd * ((outer * kernel).sum(2, keepdim=True) - columns(mean_1x1) * sums)
        grad_weight_1x1 = scale * (outer - sums * columns(mean).mT - grad_gamma_1x1 * rstd * (kernel @ cov))
        pull = scale * rstd * grad_gamma_1x1 / count
        from_x = -kernel.mT @ (pull * kernel)                                     # P: g, C1/g, C1/g
        const = kernel.mT @ (pull * columns(mean_1x1) - scale * sums / count)     # g, C1/g, 1
        grad_gamma_id = None
        if gamma_id is not None:
            rstd, scale = columns(rstd_id), columns(gamma_id * rstd_id)
            grad_gamma_id = rstd * (outer.diagonal(dim1=1, dim2=2)[:, :, None] - columns(mean) * sums)
            pull = scale * rstd * grad_gamma_id / count
            from_x.diagonal(dim1=1, dim2=2).sub_(pull[:, :, 0])
            const += pull * columns(mean) - scale * sums / count
            grad_gamma_id = grad_gamma_id.flatten().to(x.dtype)
        if grad_x is not None:
            strided = seen is not x
            target = torch.zeros_like(seen) if strided else grad_x
            _add_product(target, small.mT, grad, groups)
            _add_product(target, from_x.to(x.dtype), seen, groups)
            target += const.flatten().to(x.dtype)[:, None, None]
            if strided:
                grad_x[:, :, ::geometry.stride[0], ::geometry.stride[1]] += target
        return (grad_x, grad_weight_3x3, grad_gamma_3x3, grad_beta,
                grad_weight_1x1.to(x.dtype).flatten(0, 1)[:, :, None, None],
                grad_gamma_1x1.flatten().to(x.dtype), grad_beta,
                grad_gamma_id, grad_beta if gamma_id is not None else None, None, None)


def _seen_by_1x1(x: Tensor, stride: Sequence[int]) -> Tensor:
    return x if tuple(stride) == (1, 1) else x[:, :, ::stride[0], ::stride[1]].contiguous()


def _outer_sum(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """Sum over batch and positions of a b^T in each group: (g, Ca/g, Cb/g) of (N, Ca, H, W) and (N, Cb, H, W)."""
    a, b = (t.unflatten(1, (groups, -1)).flatten(3) for t in (a, b))              # N, g, C/g, HW
    return (a @ b.mT).sum(0)


def _add_product(out: Tensor, matrix: Tensor, x: Tensor, groups: int) -> None:
    """out += matrix x in each group, in place; out (N, Co, H, W), matrix (g, Co/g, Ci/g), x (N, Ci, H, W)."""
    batch = len(x)
    matrix = matrix.expand(batch, *matrix.shape).reshape(-1, *matrix.shape[1:])   # Ng, Co/g, Ci/g
    out.view(batch * groups, matrix.shape[1], -1).baddbmm_(matrix, x.view(batch * groups, matrix.shape[2], -1))
