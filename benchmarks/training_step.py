"""What the training form costs against plain nets: evaluation, norm_eval step, training step, saved activations.

    python benchmarks/training_step.py [A0 B1g2] [--size 512] [--images 2] [--rounds 7]

Every row of a group is timed once a round, interleaved, and given as the median of the rounds' ratios to the first row
of its group. The images are contiguous unless a row says otherwise. Where mmpretrain and timm can be imported
(.venv-peers/bin/python) their nets are rows too.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from repvgg_mm import RepVGG, whole_model_convert
from repvgg_mm.benchmark.benchmark import saved_bytes
from repvgg_mm.block import RepVGGBlock, branch_by_branch, named_blocks
from repvgg_mm.branch_sum import centres
from repvgg_mm.convert.measure import cpu_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archs', nargs='*', default=['A0', 'B1g2'])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    print(f'torch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} threads, float32, '
          f'{args.images} images of {args.size}x{args.size}, medians of {args.rounds} interleaved rounds, quartiles')
    for arch in args.archs:
        measure(arch, torch.randn(args.images, 3, args.size, args.size), args.rounds)


def measure(arch: str, x: torch.Tensor, rounds: int) -> None:
    torch.manual_seed(0)
    ours = RepVGG(arch).train()
    frozen = RepVGG(arch, norm_eval=True).train()
    plain = plain_net(ours, norm=True).train()
    bias_only = plain_net(ours, norm=False).train()
    plain_last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    ours_last = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    evaluated = copy.deepcopy(ours).eval()
    deploy = whole_model_convert(evaluated)

    groups = {
        'evaluation': {
            'deploy form': partial(forward, deploy, x),
            'training form': partial(forward, evaluated, x),
            'training form, branch by branch': apart(forward, evaluated, x),
            'fusing alone': partial(fuse, evaluated)},
        'norm_eval step': {
            'plain conv + bias': partial(step, bias_only, x),
            'training form': partial(step, frozen, x),
            'training form, branch by branch': apart(step, frozen, x)},
        'step with batch statistics': {
            'plain conv-BN-ReLU': partial(step, plain, x),
            'plain conv-BN-ReLU, channels_last': partial(step, plain_last, x_last),
            'training form': partial(step, ours, x),
            'training form, channels_last': partial(step, ours_last, x_last),
            'training form, branch by branch': apart(step, ours, x),
            'products with 1x1 kernels alone': products_1x1(ours, x_last)}}
    trained = {'plain conv-BN-ReLU': plain, 'training form': ours}
    for name, model in peers(arch):
        trained[name] = copy.deepcopy(model)
        trained[name].train()
        model.eval()
        groups['evaluation'][name] = partial(forward, model, x)
        groups['step with batch statistics'][name] = partial(step, trained[name], x)

    for group, calls in groups.items():
        times = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        _, *first = next(iter(times.values()))
        for name, (_, *counted) in times.items():
            lower, median, upper = statistics.quantiles([a / b for a, b in zip(counted, first)], n=4)
            print(f'{arch:5} {group:27} {name:34} {statistics.median(counted) * 1000:8.0f} ms   '
                  f'{median:.2f} ({lower:.2f} to {upper:.2f})', flush=True)
    saved = {name: saved_bytes(model, x) for name, model in trained.items()}
    with branch_by_branch(ours):
        saved['branch by branch'] = saved_bytes(ours, x)
    print(f'{arch:5} kept for the backward pass: ' + ', '.join(
        f'{name} {size / 2**20:.0f} MiB ({size / saved["plain conv-BN-ReLU"]:.2f})'
        for name, size in saved.items()), flush=True)


def forward(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def step(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    sum(out.mean() for out in model(x)).backward()


def fuse(model: nn.Module) -> None:
    """The least that evaluating a training form costs above the deploy form."""
    with torch.no_grad():
        for _, block in named_blocks(model):
            block.fuse()


def products_1x1(model: nn.Module, x: torch.Tensor) -> Callable:
    """The least that a step costs above a plain net's if no output of a 1x1 branch is kept: four products a block.

    Forward, the same again in the backward pass, and the gradients of input and kernel, in channels_last.
    """
    inputs = []
    hooks = [block.register_forward_pre_hook(lambda block, args: inputs.append((block.branch_1x1.conv, args[0])))
             for _, block in named_blocks(model)]
    forward(model, x)
    for hook in hooks:
        hook.remove()
    shapes = [(centres(x, conv.stride).contiguous(memory_format=torch.channels_last), conv.weight.detach(), conv.groups)
              for conv, x in inputs]

    def call() -> None:
        for x, weight, groups in shapes:
            u = torch.conv2d(x, weight, groups=groups)
            torch.conv2d(x, weight, groups=groups)
            torch.ops.aten.convolution_backward(
                u, x, weight, None, (1, 1), (0, 0), (1, 1), False, [0, 0], groups, [True, True, False])
    return call


def apart(call: Callable, model: nn.Module, x: torch.Tensor) -> Callable:
    def call_branches() -> None:
        with branch_by_branch(model):
            call(model, x)
    return call_branches


def peers(arch: str) -> list[tuple[str, nn.Module]]:
    """The same architecture in other libraries, as far as they are installed and have it."""
    found = []
    try:
        from mmpretrain.models import RepVGG as MMPretrainRepVGG
        found.append(("mmpretrain's training form", MMPretrainRepVGG(arch, out_indices=(0, 1, 2, 3))))
    except (ImportError, RuntimeError) as error:
        print(f'{arch:5} without mmpretrain: {error}')
    try:
        import timm
        if f'repvgg_{arch.lower()}' in timm.list_models('repvgg*'):
            found.append(("timm's training form", timm.create_model(
                f'repvgg_{arch.lower()}', features_only=True, out_indices=(1, 2, 3, 4))))
    except (ImportError, RuntimeError) as error:
        print(f'{arch:5} without timm: {error}')
    return found


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
