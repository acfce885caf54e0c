"""Other ways to compute a training step's sum of branches, and what they keep: the table of docs/performance.md.

    OMP_NUM_THREADS=2 python benchmarks/branch_sum_ways.py [A0 B1g2] [--size 512] [--images 2] [--rounds 11]

x is a block's input, z the output of its 3x3 convolution, u that of its 1x1 convolution (`repvgg_mm/branch_sum.py`).
Ways are timed in turn in one process, contiguous images, float32; medians of the ratio to a plain net's step of the
same round, quartiles in brackets. Before that the gradients of each way are compared, in float64, with those of the
branches written out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from training_step import plain_net, step

from repvgg_mm import RepVGG, block
from repvgg_mm.benchmark.benchmark import saved_bytes
from repvgg_mm.block import branch_by_branch
from repvgg_mm.branch_sum import Geometry, Norm, branch_sum, centres
from repvgg_mm.convert.measure import cpu_name

DEEP = 192  # channels
POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


class Way(NamedTuple):
    name: str
    keeps_u: int | None = None    # of blocks with this many channels and more
    forgets_z: bool = False       # of the stem
    forward: str = 'norms'        # 'passes', 'convolution'
    adds_in_convolution: bool = False  # the gradient through the 1x1 convolution, to that through the 3x3


WAYS = [
    Way('every u kept', keeps_u=0),
    Way(f'u kept in blocks of {DEEP} channels and more', keeps_u=DEEP),
    Way("the same, and the stem's z computed again", keeps_u=DEEP, forgets_z=True),
    Way('statistics first, then one pass each for scaled z, u and x', forward='passes'),
    Way('the same, scaled u and x as one 1x1 convolution that adds to z', forward='convolution'),
    Way("the 1x1 convolution's gradient added by oneDNN", adds_in_convolution=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archs', nargs='*', default=['A0', 'B1g2'])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=11, help='at least 2')
    args = parser.parse_args()

    print(f'torch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} threads, {args.images} images of '
          f'{args.size}x{args.size}')
    print('| | way | kept | step, ratio to a plain net | gradients, from those of branches |\n|---|---|---|---|---|')
    torch.manual_seed(0)
    for arch in args.archs:
        measure(arch, torch.randn(args.images, 3, args.size, args.size), args.rounds)


def measure(arch: str, x: Tensor, rounds: int) -> None:
    model = RepVGG(arch).train()
    plain = plain_net(model, norm=True).train()
    sums = {'as it is': branch_sum, **{way.name: sum_of(way) for way in WAYS}}
    small = x[:, :, :64, :64].double()
    with branch_by_branch(model):
        exact = gradients(copy.deepcopy(model).double(), small)

    errors, kept = {}, {}
    for name, one in sums.items():
        with patch.object(block, 'branch_sum', one):
            errors[name] = distance(gradients(copy.deepcopy(model).double(), small), exact)
            kept[name] = saved_bytes(model, x) / saved_bytes(plain, x)

    ratios = {name: [] for name in sums}
    for number in range(rounds + 1):
        base = seconds_of_step(plain, x)
        for name, one in sums.items():
            with patch.object(block, 'branch_sum', one):
                ratio = seconds_of_step(model, x) / base
            if number:  # the first round warms up
                ratios[name].append(ratio)

    for name, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f'| {arch} | {name} | {kept[name]:.2f} | {median:.2f} ({low:.2f} to {high:.2f}) | {errors[name]:.0e} |',
              flush=True)


def seconds_of_step(model: nn.Module, x: Tensor) -> float:
    begin = time.perf_counter()
    step(model, x)
    return time.perf_counter() - begin


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    sum(out.square().mean() for out in model(x)).backward()
    return [parameter.grad for parameter in model.parameters()]


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Of all gradients, relative to their length."""
    found, exact = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, exact))
    return ((found - exact).norm() / exact.norm()).item()


def sum_of(way: Way):
    """What `branch_sum` computes, in this way."""
    def in_this_way(
        x: Tensor, weight_3x3: Tensor, norm_3x3: Norm, weight_1x1: Tensor, norm_1x1: Norm, norm_identity: Norm | None,
        geometry: Geometry,
    ) -> Tensor:
        norms = [norm_3x3, norm_1x1, norm_identity] if norm_identity else [norm_3x3, norm_1x1]
        affine = [tensor for norm in norms for tensor in norm[:2]]
        return _Sum.apply(way, geometry, norms, x, weight_3x3, weight_1x1, *affine)
    return in_this_way


class _Sum(torch.autograd.Function):

    @staticmethod
    def forward(ctx, way, geometry, norms, x, weight_3x3, weight_1x1, *affine):
        x = x.contiguous(memory_format=torch.channels_last)
        seen = centres(x, geometry.stride)
        z = torch.conv2d(x, weight_3x3, None, *geometry)
        u = torch.conv2d(seen, weight_1x1, groups=geometry.groups)
        others = (u, x)[:len(norms) - 1]

        keeps_u = way.keeps_u is not None and z.shape[1] >= way.keeps_u
        ctx.z_is_there = not (way.forgets_z and x.shape[1] == 3)
        ctx.u_is_there = keeps_u
        if way.forward == 'norms':
            out, moments = one_norm_after_the_other(z, others, norms, keeps_u)
        else:
            out, moments = statistics_first(way, z, others, norms, seen, weight_1x1, geometry.groups)

        kept = [z] * ctx.z_is_there + [u] * ctx.u_is_there
        ctx.save_for_backward(x, weight_3x3, weight_1x1, *[norm.weight for norm in norms], *kept)
        ctx.way, ctx.geometry, ctx.moments = way, geometry, moments
        ctx.eps = [norm.eps for norm in norms]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight_3x3, weight_1x1, *others = ctx.saved_tensors
        gammas, kept = others[:len(ctx.eps)], others[len(ctx.eps):]
        geometry = ctx.geometry
        grad = grad.contiguous(memory_format=torch.channels_last)
        seen = centres(x, geometry.stride)
        z = kept.pop(0) if ctx.z_is_there else torch.conv2d(x, weight_3x3, None, *geometry)

        def through_norm(i: int, before: Tensor) -> list[Tensor]:
            return torch.ops.aten.native_batch_norm_backward(
                grad, before, gammas[i], None, None, *ctx.moments[i], True, ctx.eps[i], [True] * 3)

        def through_conv(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs_x: bool) -> list[Tensor]:
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, *geometry[:3], False, [0, 0], geometry.groups, [needs_x, True, False])[:2]

        needs_x = ctx.needs_input_grad[3]
        grad_z, grad_gamma_3x3, grad_beta = through_norm(0, z)
        grad_x, grad_weight_3x3 = through_conv(grad_z, x, weight_3x3, geometry, needs_x)
        del grad_z, z

        u = kept.pop() if ctx.u_is_there else torch.conv2d(seen, weight_1x1, groups=geometry.groups)
        grad_u, grad_gamma_1x1, _ = through_norm(1, u)
        pointwise = POINTWISE._replace(groups=geometry.groups)
        adds = ctx.way.adds_in_convolution and needs_x and tuple(geometry.stride) == (1, 1)
        grad_seen, grad_weight_1x1 = through_conv(grad_u, seen, weight_1x1, pointwise, needs_x and not adds)
        if adds:
            grad_x = add_convolution(grad_x, grad_u, turned(weight_1x1, geometry.groups), geometry.groups)
        elif needs_x:
            centres(grad_x, geometry.stride).add_(grad_seen)

        grads = [grad_gamma_3x3, grad_beta, grad_gamma_1x1, grad_beta]
        if len(gammas) == 3:
            grad_identity, grad_gamma_identity, _ = through_norm(2, x)
            grads += [grad_gamma_identity, grad_beta]
            if needs_x:
                grad_x += grad_identity
        return None, None, None, grad_x, grad_weight_3x3, grad_weight_1x1, *grads


def one_norm_after_the_other(
    z: Tensor, others: tuple[Tensor, ...], norms: list[Norm], keeps_u: bool
) -> tuple[Tensor, list]:
    """As the package does it: the sum, and mean and 1 / sqrt(var + eps) of each."""
    out, *first = batch_norm(z, norms[0], norms[0].bias, into=torch.empty_like(z))
    moments = [first]
    into = torch.empty_like(others[0]) if keeps_u else others[0]
    for before, norm in zip(others, norms[1:]):
        normalised, *found = batch_norm(before, norm, norm.bias, into)
        out += normalised
        moments.append(found)
    return out, moments


def statistics_first(
    way: Way, z: Tensor, others: tuple[Tensor, ...], norms: list[Norm], seen: Tensor, weight_1x1: Tensor, groups: int
) -> tuple[Tensor, list]:
    """The shifts of u and x go into the norm of z; then u and x are scaled and added."""
    scales, moments, shift = [], [], norms[0].bias
    for before, norm in zip(others, norms[1:]):
        mean, var = torch.batch_norm_update_stats(before, norm.running_mean, norm.running_var, norm.momentum)
        rstd = torch.rsqrt(var + norm.eps)
        scale = norm.weight * rstd
        shift = shift + norm.bias - scale * mean
        scales.append(scale[:, None, None])
        moments.append((mean, rstd))

    out, *first = batch_norm(z, norms[0], shift, into=torch.empty_like(z))
    if way.forward == 'passes':
        for before, scale in zip(others, scales):
            out.addcmul_(before, scale)
        return out, [first, *moments]

    kernel = weight_1x1 * scales[0][..., None]
    if len(scales) == 2:
        own_channel = kernel[:, :, 0, 0].unflatten(0, (groups, -1)).diagonal(dim1=1, dim2=2)
        own_channel += scales[1].flatten().unflatten(0, (groups, -1))
    seen = seen.contiguous(memory_format=torch.channels_last)
    return add_convolution(out, seen, kernel, groups), [first, *moments]


def batch_norm(before: Tensor, norm: Norm, bias: Tensor, into: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    results = (into, torch.empty_like(bias), torch.empty_like(bias))
    return torch.native_batch_norm(
        before, norm.weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps, out=results)


def add_convolution(total: Tensor, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """total + conv1x1(x), by oneDNN in one pass; float32 alone, torch's own compiler calls it so."""
    if total.dtype != torch.float32:
        return total.add_(torch.conv2d(x, weight, groups=groups))
    return torch.ops.mkldnn._convolution_pointwise_(
        total, x, weight, None, [0, 0], [1, 1], [1, 1], groups, 'add', 1.0, None, [], '')


def turned(weight: Tensor, groups: int) -> Tensor:
    """The kernel of the 1x1 convolution through which the gradient of one with `weight` goes."""
    swapped = weight[:, :, 0, 0].unflatten(0, (groups, -1)).transpose(1, 2)
    return swapped.flatten(0, 1)[:, :, None, None].contiguous(memory_format=torch.channels_last)


if __name__ == '__main__':
    main()
