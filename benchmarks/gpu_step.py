"""What both forms cost on a GPU beside plain nets and a ResNet-50: eager and compiled, float32 and bfloat16.

    python benchmarks/gpu_step.py [A0 B1g2 B2] [--size 512] [--images 16] [--rounds 11] [--device cuda]

Rows of one group are timed in turn: medians, quartiles in brackets, and the ratio to the plain net of the same shapes.
A share of the peak is that of a product of two large matrices in the same type, measured here, too; float32 is TF32 on
a GPU. A step is a forward and a backward pass. Where mmpretrain or mmsegmentation can be imported their nets are rows.
`--device cpu` shows that it runs: steps are then not compiled.
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial

import torch
from torch import Tensor, nn
from training_step import peers, plain_net

from repvgg_mm import RepVGG, whole_model_convert
from repvgg_mm.convert.measure import count_macs, cpu_name, interleaved_latency

DTYPES = {'float32': None, 'bfloat16': torch.bfloat16}  # of autocast
MODES = ('eager', 'compiled')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archs', nargs='*', default=['A0', 'B1g2', 'B2'])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=11, help='at least 2')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--dtypes', nargs='+', default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument('--modes', nargs='+', default=list(MODES), choices=MODES)
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('no GPU is there: --device cpu shows that the script runs, with --size 64 --images 2')

    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    name = torch.cuda.get_device_name() if device.type == 'cuda' else cpu_name()
    print(f'torch {torch.__version__}, {name}, {args.images} images of {args.size}x{args.size}, channels_last')
    print('| | what | ms | ratio | share of the peak |\n|---|---|---|---|---|')
    x = torch.randn(args.images, 3, args.size, args.size, device=device).to(memory_format=torch.channels_last)
    for dtype in args.dtypes:
        peak = peak_of_products(device, DTYPES[dtype])
        for arch in args.archs:
            for mode in args.modes:
                measure(arch, x, dtype, mode, args.rounds, peak)


def measure(arch: str, x: Tensor, dtype: str, mode: str, rounds: int, peak: float) -> None:
    """Print the rows of one architecture; `peak` is in multiplications and additions a millisecond."""
    models = nets(arch, x.device)
    trainable = models if x.is_cuda or mode == 'eager' else {}
    evaluated = {name: models[name] for name in ('plain conv-BN-ReLU', 'training form')}
    evaluated['deploy form'] = whole_model_convert(models['training form'])
    operations = 2 * len(x) * count_macs(evaluated['deploy form'], x[:1])  # of each of these forms, as it is evaluated

    for group, members, work in (('step', trainable, step), ('evaluation', evaluated, evaluate)):
        calls = {}
        for name, model in members.items():
            calls[name] = partial(work, torch.compile(model) if mode == 'compiled' else model, x, DTYPES[dtype])
            calls[name]()  # a compiler's work is not timed

        times = interleaved_latency(calls, rounds)
        for name, found in times.items():
            time = f'{found.median_ms:.1f} ({found.lower_ms:.1f} to {found.upper_ms:.1f})'
            ratio = f'{found.median_ms / times["plain conv-BN-ReLU"].median_ms:.2f}'
            share = f'{operations / found.median_ms / peak:.0%}' if group == 'evaluation' else ''
            print(f'| {arch}, {group}, {dtype}, {mode} | {name} | {time} | {ratio} | {share} |', flush=True)
    torch._dynamo.reset()


def nets(arch: str, device: torch.device) -> dict[str, nn.Module]:
    ours = RepVGG(arch)
    found = {'plain conv-BN-ReLU': plain_net(ours, norm=True), 'training form': ours, **dict(peers(arch))}
    with contextlib.suppress(ImportError):
        from mmseg.models.backbones import ResNet
        found['ResNet-50'] = ResNet(50)
    return {name: model.to(device, memory_format=torch.channels_last) for name, model in found.items()}


@torch.enable_grad()
def step(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        loss = sum(out.mean() for out in model(x))
    loss.backward()


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    if model.training:  # a second eval() would have the kernels of the call before made again
        model.eval()
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        model(x)


def peak_of_products(device: torch.device, dtype: torch.dtype | None) -> float:
    """Multiplications and additions a millisecond of a product of two large matrices."""
    size = 8192 if device.type == 'cuda' else 1024
    matrix = torch.randn(size, size, device=device, dtype=dtype or torch.float32)
    found = interleaved_latency({'product': lambda: matrix @ matrix}, rounds=5)['product']
    return 2 * size**3 / found.median_ms


if __name__ == '__main__':
    main()
