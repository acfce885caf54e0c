"""Time and memory of whole_model_convert(model, inplace=True) on the CPU.

    python benchmarks/inplace_conversion.py

The model is an mmseg PSPNet on RepVGG-B3 at output stride 8 with random BatchNorm statistics.

Time is that of the one call, the median over fresh copies of the model.

Memory is counted in tensors (`repvgg_mm.convert.measure.LiveBytes`), the model's own among them. The
sum falls from block to block, as a fused block is smaller than its branches. Two figures:

peak above the start   the largest sum minus the model's own bytes
largest rise           the largest sum minus the smallest before it: what a block needs
                       beside its branches, whatever earlier blocks have set free
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import nn

import repvgg_mm
from repvgg_mm.block import named_blocks
from repvgg_mm.convert.measure import LiveBytes, cpu_name

MAX_SECONDS, MAX_KERNELS = 0.5, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='B3', choices=repvgg_mm.ARCHS)
    parser.add_argument('--repeats', type=int, default=5, help='models to convert for the median time')
    parser.add_argument('--dtype', default='float32', choices=['float16', 'bfloat16', 'float32', 'float64'])
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'PSPNet RepVGG-{args.arch}, {args.dtype}, torch {torch.__version__}, {args.threads} threads, {cpu_name()}')

    model = pspnet(args.arch).to(getattr(torch, args.dtype))
    sizes = [block.branch_3x3.conv.weight.nbytes for _, block in named_blocks(model)]  # a fused kernel's, too
    largest = max(sizes)
    print(f'{len(sizes)} blocks, {sum(sizes) / 2**20:.1f} MiB of fused kernels, '
          f'the largest {largest / 2**20:.1f} MiB')

    seconds = [conversion_time(copy.deepcopy(model)) for _ in range(args.repeats)]
    print(f'time: {verdict(statistics.median(seconds), MAX_SECONDS)} s, median of {args.repeats}: '
          + ' '.join(f'{second:.3f}' for second in seconds))

    with LiveBytes(model) as live:
        repvgg_mm.whole_model_convert(model, inplace=True)
    peak, rise = live.peak - live.start, live.rise
    print(f'peak above the start: {peak / 2**20:.2f} MiB, {verdict(peak / largest, MAX_KERNELS)} of the largest kernel')
    print(f'largest rise: {rise / 2**20:.2f} MiB, {rise / largest:.3f} of the largest kernel')


def pspnet(arch: str) -> nn.Module:
    register_all_modules()
    norm = dict(type='BN')
    widths = repvgg_mm.RepVGG(arch, out_indices=(0,)).arch.stage_channels
    model = MODELS.build(dict(
        type='EncoderDecoder',
        backbone=dict(type='RepVGG', arch=arch, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=norm),
        decode_head=dict(type='PSPHead', in_channels=widths[3], in_index=3, channels=512, pool_scales=(1, 2, 3, 6),
                         num_classes=19, norm_cfg=norm, align_corners=False),
        auxiliary_head=dict(type='FCNHead', in_channels=widths[2], in_index=2, channels=256, num_convs=1,
                            concat_input=False, num_classes=19, norm_cfg=norm, align_corners=False),
        train_cfg=dict(), test_cfg=dict(mode='whole')))
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 2)
            nn.init.normal_(module.bias)
    return model


def conversion_time(model: nn.Module) -> float:
    start = time.perf_counter()
    repvgg_mm.whole_model_convert(model, inplace=True)
    return time.perf_counter() - start


def verdict(value: float, limit: float) -> str:
    return f'{value:.3f} ({"within" if value <= limit else "ABOVE"} {limit})'


if __name__ == '__main__':
    main()
