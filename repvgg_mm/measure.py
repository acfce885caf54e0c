"""What a model costs: parameters, multiply-accumulates, and latency as medians of interleaved calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .block import branch_by_branch
from .compare import evaluating
from .raw_outputs import raw_outputs


class Latency(NamedTuple):
    """Median and quartiles of the time of one call, in milliseconds."""

    median_ms: float
    lower_ms: float
    upper_ms: float


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products in one forward call.

    Blocks in training form count branch by branch. FLOPs are twice this number.
    """
    with evaluating(model), branch_by_branch(model), FlopCounterMode(display=False) as counter:
        raw_outputs(model, *inputs)
    return counter.get_total_flops() // 2


@torch.no_grad()
def interleaved_latency(calls: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, Latency]:
    """Time every call once a round, one after the other, so that a busy machine slows all alike.

    The first round warms up and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            _synchronise()
            start = time.perf_counter()
            call()
            _synchronise()
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: Latency(statistics.median(counted), *statistics.quantiles(counted, n=4)[::2])
            for name, (_, *counted) in times.items()}


def form_latency(trained: nn.Module, deploy: nn.Module, inputs: Tensor, rounds: int = 15) -> dict[str, Latency]:
    """Of one forward call of 'branches' (the training form, branch by branch), 'training' and 'deploy'."""
    def call_branches() -> None:
        with branch_by_branch(trained):
            raw_outputs(trained, inputs)

    return interleaved_latency({
        'branches': call_branches,
        'training': partial(raw_outputs, trained, inputs),
        'deploy': partial(raw_outputs, deploy, inputs)}, rounds)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
