"""Ranges of values in each RepVGG block: of its branches before fusing, and of the one convolution after.

A branch counts as it enters the sum, factor * norm(conv(x)): its share of the kernel is scale * weight, with
scale = factor * gamma / sqrt(var + eps) of each output channel. An int8 engine has to cover these ranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..block import branch_by_branch, named_blocks, scale_shift
from ..convert.compare import evaluating
from ..convert.foreign import Branch, named_foreign_blocks
from ..convert.raw_outputs import raw_outputs

SAMPLE = 2**18  # values of a tensor from which percentiles are taken; smallest and largest are of all
FUSED = 'fused'


class Range(NamedTuple):
    """Smallest value, first and 99th percentile, largest value."""

    low: float
    p1: float
    p99: float
    high: float


@dataclass
class Layer:
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
        self.low, self.high = float('inf'), float('-inf')
        self.samples: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)

    def add(self, tensor: Tensor) -> None:
        values = tensor.detach().flatten()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        low, high = values.aminmax()
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        if values.numel() > SAMPLE:
            values = values[torch.randint(values.numel(), (SAMPLE,), generator=self.generator).to(values.device)]
        self.samples.append(values.cpu())

    def range(self) -> Range:
        values = torch.cat(self.samples)
        p1, p99 = values.quantile(torch.tensor([0.01, 0.99], dtype=values.dtype)).tolist()
        return Range(self.low, p1, p99, self.high)


def range_of(*tensors: Tensor) -> Range:
    """Of the values of all `tensors` together."""
    collector = Collector()
    for tensor in tensors:
        collector.add(tensor)
    return collector.range()


@torch.no_grad()
def layer_ranges(trained: nn.Module, deploy: nn.Module, inputs: Iterable[Tensor] = ()) -> list[Layer]:
    """Every block that converting `trained` to `deploy` fused; activations over all `inputs`, (N, C, H, W) each.

    Blocks that are in deploy form in `trained` too are left out. Both models are in the mode afterwards
    in which they were before.
    """
    blocks = dict(named_branches(trained))
    fused = {name: deploy.get_submodule(name).branch_reparam for name in blocks}
    layers = []
    for name, branches in blocks.items():
        kernel = fused[name].weight
        weights = {label: range_of(kernel_share(branch)) for label, branch in branches.items()}
        channels = kernel.flatten(1).abs().amax(1)
        layers.append(Layer(name, weights | {FUSED: range_of(kernel)},
                            (channels.max() / channels.median().clamp_min(torch.finfo(kernel.dtype).tiny)).item()))
    inputs = list(inputs)
    if inputs:
        before = _activations(trained, {
            (name, label): (branch.norm, branch.factor)
            for name, branches in blocks.items() for label, branch in branches.items()}, inputs)
        after = _activations(deploy, {(name, FUSED): (conv, 1.0) for name, conv in fused.items()}, inputs)
        for layer in layers:
            layer.activations = {label: found for (name, label), found in (before | after).items()
                                 if name == layer.name}
    return layers


def named_branches(model: nn.Module) -> Iterator[tuple[str, dict[str, Branch]]]:
    """Name and labelled branches of every block in training form, this package's and registered ones."""
    for name, block in named_blocks(model):
        if not block.deploy:
            branches = [Branch(*block.branch_3x3), Branch(*block.branch_1x1)]
            identity = [] if block.branch_norm is None else [Branch(None, block.branch_norm)]
            yield name, _labelled(branches + identity)
    for name, _, parts in named_foreign_blocks(model):
        yield name, _labelled(parts.branches)


def kernel_share(branch: Branch) -> Tensor:
    """What a branch adds to the fused kernel: scale * weight (C2, C1/groups, k, k), of an identity scale (C,)."""
    weight = branch.norm.running_var if branch.conv is None else branch.conv.weight
    scale = scale_shift(branch.norm, torch.promote_types(weight.dtype, torch.float32)).scale
    return branch.factor * (scale if branch.conv is None else weight * scale[:, None, None, None])


def _labelled(branches: Iterable[Branch]) -> dict[str, Branch]:
    labelled, seen = {}, Counter()
    for branch in branches:
        label = 'identity' if branch.conv is None else 'x'.join(map(str, branch.conv.kernel_size))
        seen[label] += 1
        labelled[label if seen[label] == 1 else f'{label} ({seen[label]})'] = branch
    return labelled


def _activations(model: nn.Module, places: dict, inputs: list[Tensor]) -> dict:
    """The ranges of factor * output of modules; `places` are (module, factor) by key."""
    collectors = {key: Collector() for key in places}

    def collect(key: object, factor: float | Tensor) -> object:
        return lambda _module, _inputs, out: collectors[key].add(factor * out)

    hooks = [module.register_forward_hook(collect(key, factor)) for key, (module, factor) in places.items()]
    try:
        with evaluating(model), branch_by_branch(model):
            for batch in inputs:
                raw_outputs(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: collector.range() for key, collector in collectors.items() if collector.samples}
