"""What a model costs: parameters, multiply-accumulates, memory, and latency as medians of interleaved calls."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from ..block import branch_by_branch
from .raw_outputs import WAYS, way_of
from .reproducible import evaluating


class Latency(NamedTuple):
    """Median and quartiles of the time of one call, in milliseconds."""

    median_ms: float
    lower_ms: float
    upper_ms: float


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters, frozen ones included; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products in one forward call.

    Blocks in training form count branch by branch. FLOPs are twice this number.
    """
    with evaluating(model), branch_by_branch(model):
        run = WAYS[way_of(model, *inputs)]
        with FlopCounterMode(display=False) as counter:
            run(model, *inputs)
    return counter.get_total_flops() // 2


ROUNDS = 15
LEAST_ROUNDS = 2  # that quartiles need
SECONDS_BETWEEN = 5.0  # of two lines of progress


class RoundProgress:
    """An `after_round` of `interleaved_latency` that says every `SECONDS_BETWEEN` how many of `rounds` are `done`.

    `words` have `{done}` and `{rounds}` in them.
    """

    def __init__(
        self, rounds: int, say: Callable[[str], None], words: str = 'Measured latency in {done} of {rounds} rounds'
    ) -> None:
        self.rounds = rounds
        self.say = say
        self.words = words
        self.done = 0
        self.said = time.perf_counter()

    def __call__(self, done: int) -> None:
        self.done = done
        now = time.perf_counter()
        if done and now - self.said >= SECONDS_BETWEEN:
            self.said = now
            self.say(self.words.format(done=done, rounds=self.rounds))


@torch.no_grad()
def interleaved_latency(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    *,
    pause: float = 0.0,
    limit: float = math.inf,
    after_round: Callable[[int], None] = lambda done: None,
) -> dict[str, Latency]:
    """Time every call once a round, one after the other, so that a busy machine slows all alike.

    The first round warms up and is not counted.

    Args:
        pause: seconds before each call, in which the threads of another library stop waiting busily.
        limit: seconds after which no other round begins, but for the first `LEAST_ROUNDS`.
        after_round: called with the number of counted rounds that are done.
    """
    begin = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds + 1):
        if done > LEAST_ROUNDS and time.perf_counter() - begin > limit:
            break
        for name, call in calls.items():
            time.sleep(pause)
            _synchronise()
            start = time.perf_counter()
            call()
            _synchronise()
            seconds = time.perf_counter() - start
            times[name].append(1000 * seconds)
        after_round(done)

    found = {}
    for name, (_, *counted) in times.items():
        lower, _, upper = statistics.quantiles(counted, n=4)
        found[name] = Latency(statistics.median(counted), lower, upper)
    return found


def form_latency(
    trained: nn.Module,
    deploy: nn.Module,
    inputs: Tensor,
    rounds: int = ROUNDS,
    *,
    limit: float = math.inf,
    after_round: Callable[[int], None] = lambda done: None,
) -> dict[str, Latency]:
    """Of one forward call of 'branches' (the training form, branch by branch), 'training' and 'deploy'.

    `limit` and `after_round` as in `interleaved_latency`.
    """
    run = WAYS[way_of(trained, inputs)]

    def call_branches() -> None:
        with branch_by_branch(trained):
            run(trained, inputs)

    calls = {
        'branches': call_branches,
        'training': partial(run, trained, inputs),
        'deploy': partial(run, deploy, inputs),
    }
    return interleaved_latency(calls, rounds, limit=limit, after_round=after_round)


class LiveBytes(TorchDispatchMode):
    """Bytes of a model and of all tensors made inside this context: at its start, at most, and largest rise.

    Counted in tensors, because the process' size depends on what the allocator keeps: the result of every
    operation, temporaries included, is seen and its storage held by a weak reference. What one operation uses
    inside itself is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        for tensor in model.state_dict().values():
            self.add(tensor)
        self.start = self.peak = self.least = self.sum()
        self.rise = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors, _ = tree_flatten(result)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self.add(tensor)

        now = self.sum()
        self.peak = max(self.peak, now)
        self.least = min(self.least, now)
        self.rise = max(self.rise, now - self.least)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def sum(self) -> int:
        alive = {}
        for key, (ref, size) in self.storages.items():
            if not ref.expired():
                alive[key] = ref, size
        self.storages = alive
        return sum(size for _, size in alive.values())


def cpu_name() -> str:
    """The processor's name where Linux tells it."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.exists() else []
    for line in lines:
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return 'unknown CPU'


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
