"""What evaluation of the training form costs beside the deploy form, at every size: a table of ratios.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [A0 B1 B1g2] [--sizes 64 96 128 224 320 512] [--batches 1 8]
        [--seconds 12]

Forms are called in turn in one process, each after a call that is not timed: `kept` (the kernel of the call before),
`anew` (as after train() or eval()), `branches` (branch by branch). Medians of the ratio to the deploy form's call of
the same round, quartiles in brackets. The last lines say what the kept kernels take.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from repvgg_mm import RepVGG, whole_model_convert
from repvgg_mm.block import branch_by_branch, named_blocks

FEWEST_ROUNDS = 5
MOST_ROUNDS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archs', nargs='*', default=['A0', 'B1', 'B1g2'])
    parser.add_argument('--sizes', nargs='+', type=int, default=[64, 96, 128, 224, 320, 512])
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 8])
    parser.add_argument('--seconds', type=float, default=12, help='of a row, five rounds at least')
    args = parser.parse_args()

    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    print('| | batch | deploy form, ms | kept | anew | branches | rounds |\n|---|---|---|---|---|---|---|')
    for arch in args.archs:
        model = RepVGG(arch).eval()
        deploy = whole_model_convert(model)
        for size in args.sizes:
            for batch in args.batches:
                print(row(arch, model, deploy, torch.randn(batch, 3, size, size), args.seconds), flush=True)
        print(memory(arch, model))


@torch.no_grad()
def row(arch: str, model: RepVGG, deploy: RepVGG, x: torch.Tensor, seconds: float) -> str:
    def anew() -> None:
        model.eval()
        model(x)

    def branches() -> None:
        with branch_by_branch(model):
            model(x)

    forms = dict(deploy=lambda: deploy(x), kept=lambda: model(x), anew=anew, branches=branches)
    times = {name: [] for name in forms}
    begin = time.monotonic()
    while len(times['deploy']) < MOST_ROUNDS:
        for name, form in forms.items():
            form()
            times[name].append(seconds_of(form))
        if len(times['deploy']) >= FEWEST_ROUNDS and time.monotonic() - begin > seconds:
            break

    cells = [f'{arch}, {x.shape[2]}x{x.shape[3]}', str(len(x)), f"{1000 * statistics.median(times['deploy']):.1f}"]
    for name in ('kept', 'anew', 'branches'):
        ratios = [one / deployed for one, deployed in zip(times[name], times['deploy'])]
        low, median, high = statistics.quantiles(ratios, n=4)
        cells.append(f'{median:.2f} ({low:.2f} to {high:.2f})')
    return '| ' + ' | '.join([*cells, str(len(times['deploy']))]) + ' |'


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def memory(arch: str, model: RepVGG) -> str:
    """Of the kernels that are kept now, beside the parameters."""
    kept = 0
    for _, block in named_blocks(model):
        if block._kept is not None:
            kept += sum(tensor.nbytes for tensor in block._kept.fused)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    return f'{arch} keeps {kept / 1e6:.1f} MB beside {parameters / 1e6:.1f} MB of parameters.'


if __name__ == '__main__':
    main()
