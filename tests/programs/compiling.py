"""A table of torch.compile: its backends, what is set on a backbone, breaks of the graph, and differences from eager.

    python tests/programs/compiling.py [eager aot_eager aot_eager_decomp_partition inductor]

Two steps of the training form, and evaluations between which averaged weights are swapped in and out through `.data`,
as MMEngine's EMAHook does it; the last row of a backend is the deploy form. Float64; differences are relative to the
largest value of a tensor, 0.001 at least. On a CPU `inductor`, which needs a compiler of C++, evaluates only.
"""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_compile import INPUTS, model, step

BACKENDS = ['eager', 'aot_eager', 'aot_eager_decomp_partition', 'inductor']
OPTIONS = [
    dict(zip(('with_cp', 'norm_eval', 'frozen_stages'), values))
    for values in itertools.product((False, True), (False, True), (-1, 1))]


def main() -> None:
    print('| backend | set | steps: breaks | outputs, gradients, statistics | evaluation: breaks | outputs |')
    print('|---|---|---|---|---|---|')
    for backend in sys.argv[1:] or BACKENDS:
        for options in [*OPTIONS, dict(deploy=True)]:
            print(row(backend, options), flush=True)


def row(backend: str, options: dict) -> str:
    name = ', '.join(f'{name}={value}' for name, value in options.items() if value not in (False, -1))
    cells = [backend, name or 'nothing']
    works = [(steps, backend != 'inductor'), (evaluations, True)]

    for work, runs in works:
        if not runs:
            cells += ['not run', 'not run']
            continue

        torch._dynamo.reset()
        counters.clear()
        eager = model(**options).train()
        try:
            largest = f'{work(copy.deepcopy(eager), eager, backend):.0e}'
        except RuntimeError as error:
            if backend != 'eager' or not options.get('with_cp'):
                raise
            largest = str(error).partition(':')[0]
        cells += [str(sum(counters['graph_break'].values())), largest]
    return '| ' + ' | '.join(cells) + ' |'


def steps(compiled: nn.Module, eager: nn.Module, backend: str) -> float:
    """The largest difference in two steps: outputs, gradients, running statistics."""
    run = torch.compile(compiled, backend=backend)
    differences = []
    for _ in range(2):
        differences += [difference(*pair) for pair in zip(step(run, INPUTS), step(eager, INPUTS), strict=True)]
    return max(differences)


@torch.no_grad()
def evaluations(compiled: nn.Module, eager: nn.Module, backend: str) -> float:
    """The largest difference of an output: with weights of before, with averaged ones, and with those of before."""
    run = torch.compile(compiled, backend=backend)
    averaged = {one: [parameter * 0.9 for parameter in one.parameters()] for one in (eager, compiled)}
    run.eval()
    eager.eval()
    differences = []
    for _ in range(3):
        differences += [difference(*pair) for pair in zip(run(INPUTS), eager(INPUTS), strict=True)]
        for one, others in averaged.items():
            swap(one, others)
    return max(differences)


def swap(model: nn.Module, others: list[Tensor]) -> None:
    for parameter, other in zip(model.parameters(), others):
        kept = parameter.data.clone()
        parameter.data.copy_(other)
        other.copy_(kept)


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


if __name__ == '__main__':
    main()
