"""Ranges of values in each RepVGG block: of its branches before fusing, and of the one convolution after.

A branch counts as it enters the sum, factor * norm(conv(x)): its share of the kernel is scale * weight, with
scale = factor * gamma / sqrt(var + eps) of each output channel. An int8 engine has to cover these ranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..block import branch_by_branch, scale_shift
from ..convert.blocks import named_branches
from ..convert.foreign import Branch
from ..convert.raw_outputs import WAYS, way_of
from ..convert.reproducible import evaluating

SAMPLE = 2**18  # values of a tensor from which percentiles are taken; smallest and largest are of all
FUSED = 'fused'


class Range(NamedTuple):
    """Smallest value, first and 99th percentile, largest value."""

    low: float
    p1: float
    p99: float
    high: float


@dataclass
class BlockRanges:
    """One block. Keys are its branches ('3x3', '1x1', 'identity', a second one of a kind '3x3 (2)') and 'fused'.

    `imbalance` is the largest output channel's max |kernel| over that of the median channel, after fusing:
    what one scale for the whole kernel costs the others. `activations` are those before the activation function.
    """

    name: str
    weights: dict[str, Range]
    imbalance: float
    activations: dict[str, Range] = field(default_factory=dict)


class Collector:
    """The `Range` of several tensors; percentiles are exact up to SAMPLE values a tensor, else of that many."""

    def __init__(self) -> None:
        self.low = float('inf')
        self.high = float('-inf')
        self.samples: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)

    def add(self, tensor: Tensor) -> None:
        values = tensor.detach().flatten()
        values = values.to(torch.promote_types(values.dtype, torch.float32))

        low, high = values.aminmax()
        self.low = min(self.low, low.item())
        self.high = max(self.high, high.item())

        if values.numel() > SAMPLE:
            chosen = torch.randint(values.numel(), (SAMPLE,), generator=self.generator)
            values = values[chosen.to(values.device)]
        self.samples.append(values.cpu())

    def range(self) -> Range:
        values = torch.cat(self.samples)
        levels = torch.tensor([0.01, 0.99], dtype=values.dtype)
        p1, p99 = values.quantile(levels).tolist()
        return Range(self.low, p1, p99, self.high)


def range_of(*tensors: Tensor) -> Range:
    """Of the values of all `tensors` together."""
    collector = Collector()
    for tensor in tensors:
        collector.add(tensor)
    return collector.range()


@torch.no_grad()
def block_ranges(trained: nn.Module, deploy: nn.Module, inputs: Iterable[Tensor] = ()) -> list[BlockRanges]:
    """Every block that converting `trained` to `deploy` fused; activations over all `inputs`, (N, C, H, W) each.

    Blocks that are in deploy form in `trained` too are left out. Both models are in the mode afterwards
    in which they were before.
    """
    branches = {name: labelled(parts) for name, parts in named_branches(trained)}
    fused = {name: deploy.get_submodule(name).branch_reparam for name in branches}

    blocks = []
    for name, conv in fused.items():
        weights = {label: range_of(kernel_share(branch)) for label, branch in branches[name].items()}
        weights[FUSED] = range_of(conv.weight)
        blocks.append(BlockRanges(name, weights, _imbalance(conv.weight)))

    inputs = list(inputs)
    if inputs:
        _add_activations(blocks, trained, deploy, branches, inputs)
    return blocks


def kernel_share(branch: Branch) -> Tensor:
    """What a branch adds to the fused kernel: scale * weight (C2, C1/groups, k, k), of an identity scale (C,)."""
    weight = branch.norm.running_var if branch.conv is None else branch.conv.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = scale_shift(branch.norm, dtype).scale
    if branch.conv is None:
        return branch.factor * scale
    return branch.factor * (weight * scale[:, None, None, None])


def labelled(branches: Iterable[Branch]) -> dict[str, Branch]:
    """By kernel size, numbered from the second of a kind on."""
    found, seen = {}, Counter()
    for branch in branches:
        label = 'identity' if branch.conv is None else 'x'.join(map(str, branch.conv.kernel_size))
        seen[label] += 1
        if seen[label] > 1:
            label = f'{label} ({seen[label]})'
        found[label] = branch
    return found


def _imbalance(kernel: Tensor) -> float:
    """The largest channel's largest value over the median channel's."""
    channels = kernel.flatten(1).abs().amax(1)
    smallest = torch.finfo(kernel.dtype).tiny
    return (channels.max() / channels.median().clamp_min(smallest)).item()


class Place(NamedTuple):
    """A module whose output, times `factor`, is of interest under `label` of a block."""

    block: str
    label: str
    module: nn.Module
    factor: float | Tensor


def _add_activations(
    blocks: Sequence[BlockRanges],
    trained: nn.Module,
    deploy: nn.Module,
    branches: dict[str, dict[str, Branch]],
    inputs: Sequence[Tensor],
) -> None:
    """Fill in `activations` of every block: its branches in `trained`, its convolution in `deploy`."""
    before, after = [], []
    for block in blocks:
        for label, branch in branches[block.name].items():
            before.append(Place(block.name, label, branch.norm, branch.factor))
        conv = deploy.get_submodule(block.name).branch_reparam
        after.append(Place(block.name, FUSED, conv, 1.0))

    found = _output_ranges(trained, before, inputs) | _output_ranges(deploy, after, inputs)
    for block in blocks:
        for (name, label), values in found.items():
            if name == block.name:
                block.activations[label] = values


def _output_ranges(model: nn.Module, places: Sequence[Place], inputs: Sequence[Tensor]) -> dict:
    """By block and label; places that no input reaches are left out."""
    collectors, hooks = {}, []
    for place in places:
        collector = Collector()
        collectors[place.block, place.label] = collector
        hooks.append(place.module.register_forward_hook(_collecting(collector, place.factor)))
    try:
        with evaluating(model), branch_by_branch(model):
            run = WAYS[way_of(model, inputs[0])]
            for batch in inputs:
                run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: collector.range() for key, collector in collectors.items() if collector.samples}


def _collecting(collector: Collector, factor: float | Tensor) -> Callable:
    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        collector.add(factor * out)
    return hook
