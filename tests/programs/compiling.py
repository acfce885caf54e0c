"""A table of torch.compile: its backends, what is set on a backbone, breaks of the graph, and differences from eager.

    python tests/programs/compiling.py [eager aot_eager aot_eager_decomp_partition inductor]

Two steps in training form, then an evaluation in which averaged weights are swapped in through `.data`, as MMEngine's
EMAHook does it; the last rows are the deploy form. Float64; differences are relative to the largest value of a tensor.
On a CPU `inductor`, which needs a compiler of C++, evaluates only.
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
from test_compile import INPUTS, model, step  # noqa: E402

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
    eager = model(**options).train()
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, backend=backend)

    cells = ['not run', 'not run']
    if backend != 'inductor':
        start()
        try:
            cells = [f'{steps(run, eager):.0e}']
        except RuntimeError as error:
            cells = [str(error).partition(':')[0]]
        cells.insert(0, str(breaks()))

    start()
    averaged = [parameter.detach() * 0.9 for parameter in eager.parameters()]
    differences = []
    with torch.no_grad():
        for _ in range(2):  # the averaged weights, and then those of before
            for one in (eager, compiled):
                swap(one.eval(), copy.deepcopy(averaged))
            differences += [difference(*pair) for pair in zip(run(INPUTS), eager(INPUTS), strict=True)]
            averaged = [parameter / 0.9 for parameter in averaged]
    cells += [str(breaks()), f'{max(differences):.0e}']

    name = ', '.join(f'{name}={value}' for name, value in options.items() if value not in (False, -1))
    return ' | '.join([f'| {backend}', name or 'nothing', *cells]) + ' |'


def steps(run: nn.Module, eager: nn.Module) -> float:
    """The largest difference in two steps."""
    differences = []
    for _ in range(2):
        differences += [difference(*pair) for pair in zip(step(run, INPUTS), step(eager, INPUTS), strict=True)]
    return max(differences)


def start() -> None:
    torch._dynamo.reset()
    counters.clear()


def breaks() -> int:
    return sum(counters['graph_break'].values())


def swap(model: nn.Module, others: list[Tensor]) -> None:
    for parameter, other in zip(model.parameters(), others):
        kept = parameter.data.clone()
        parameter.data.copy_(other)
        other.copy_(kept)


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


if __name__ == '__main__':
    main()
