"""What the training form costs against plain nets: evaluation, norm_eval step, training step, saved activations.

    python benchmarks/training_step.py [A0 B1g2] [--size 512] [--images 2] [--rounds 7]

Every row is timed once a round, interleaved, and given as the median of the rounds' ratios.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from repvgg_mm import RepVGG, whole_model_convert
from repvgg_mm.benchmark import saved_bytes
from repvgg_mm.block import RepVGGBlock, branch_by_branch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archs', nargs='*', default=['A0', 'B1g2'])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    print(f'torch {torch.__version__}, cpu, {torch.get_num_threads()} threads, float32, contiguous, '
          f'{args.images} images of {args.size}x{args.size}, medians of {args.rounds} interleaved rounds, quartiles')
    for arch in args.archs:
        measure(arch, torch.randn(args.images, 3, args.size, args.size), args.rounds)


def measure(arch: str, x: torch.Tensor, rounds: int) -> None:
    torch.manual_seed(0)
    ours = RepVGG(arch).train()
    frozen = RepVGG(arch, norm_eval=True).train()
    plain = plain_net(ours, norm=True).train()
    bias_only = plain_net(ours, norm=False).train()
    evaluated = copy.deepcopy(ours).eval()
    deploy = whole_model_convert(evaluated)

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        sum(out.mean() for out in model(x)).backward()

    def apart(call, model: nn.Module) -> None:
        with branch_by_branch(model):
            call(model)

    calls = {
        'deploy form, evaluation': lambda: forward(deploy),
        'training form, evaluation': lambda: forward(evaluated),
        'training form, evaluation, branch by branch': lambda: apart(forward, evaluated),
        'plain conv + bias, step': lambda: step(bias_only),
        'norm_eval, step': lambda: step(frozen),
        'norm_eval, step, branch by branch': lambda: apart(step, frozen),
        'plain conv-BN-ReLU, step': lambda: step(plain),
        'batch statistics, step': lambda: step(ours),
        'batch statistics, step, branch by branch': lambda: apart(step, ours)}
    times = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    names = list(calls)
    for i in range(0, len(names), 3):
        for name in names[i:i + 3]:
            ratios = sorted(a / b for a, b in zip(times[name][1:], times[names[i]][1:]))
            lower, median, upper = statistics.quantiles(ratios, n=4)
            print(f'{arch:5} {name:45} {statistics.median(times[name][1:]) * 1000:8.0f} ms   '
                  f'{median:.2f} ({lower:.2f} to {upper:.2f})', flush=True)
    memory = {name: saved_bytes(model, x) for name, model in (('plain', plain), ('ours', ours))}
    with branch_by_branch(ours):
        memory['branch by branch'] = saved_bytes(ours, x)
    print(f'{arch:5} saved activations: ' + ', '.join(
        f'{name} {size / 2**20:.0f} MiB ({size / memory["plain"]:.2f})' for name, size in memory.items()), flush=True)


def plain_net(model: RepVGG, norm: bool) -> nn.Module:
    """The same shapes as one convolution a block, with a bias or with BatchNorm, and ReLU."""
    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for name, block in list(parent.named_children()):
            if isinstance(block, RepVGGBlock):
                conv = block.branch_3x3.conv
                new = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, conv.padding, conv.dilation,
                                conv.groups, bias=not norm)
                layers = [new, *([nn.BatchNorm2d(conv.out_channels)] if norm else []), nn.ReLU()]
                setattr(parent, name, nn.Sequential(*layers))
    return plain


if __name__ == '__main__':
    main()
