"""Both forms of models, engines and rivals side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..engine.description import is_engine
from ..errors import UserError
from ..files.atomic import check_output_file
from ..openmmlab.device import usable_device
from ..openmmlab.model import check_size
from ..report.benchmark import WORK, Setting, benchmark, build_forms, engine_versions, load_engines
from ..report.benchmark_output import draw, table, write_json
from .flags import add_report


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Time models of configs, interleaved in one process, after a warm-up. No weights are loaded.')
    parser.add_argument(
        'configs', nargs='+', metavar='CONFIG_OR_ENGINE',
        help='configs, whose models with RepVGG blocks are measured in both forms; and engines (.onnx, '
             '.xml), with --work forward')
    parser.add_argument('--shape', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1, help='images a call')
    parser.add_argument('--work', nargs='+', choices=WORK, default=['forward'])
    parser.add_argument('--device', help='a GPU by default if there is one')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32')
    parser.add_argument('--amp', choices=['bfloat16', 'float16'], help='torch.autocast in this type')
    parser.add_argument(
        '--compile', action='store_true',
        help='torch.compile; steps on a GPU only; what a step keeps is that of the uncompiled model')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--plot', type=Path, help='file for a picture (.png, .svg, .pdf)')
    add_report(parser)
    args = parser.parse_args(argv)
    check_arguments(args)

    engines = load_engines(path for path in args.configs if is_engine(path))
    models = build_forms([path for path in args.configs if not is_engine(path)])
    amp = getattr(torch, args.amp) if args.amp else None
    setting = Setting(random_images(args), args.rounds, amp, args.compile)
    rows = benchmark(models, setting, args.work, engines)

    conditions = setting.conditions() | engine_versions(engines)
    words = [f'{key} {value}' for key, value in conditions.items()]
    print('\n' + ', '.join(words) + '\n' + table(rows))

    if args.json:
        write_json(args.json, rows, conditions)
    if args.plot:
        draw(args.plot, rows, conditions)
    if args.report:
        from ..report.benchmark_page import benchmark_page
        from ..report.page import write_page
        write_page(args.report, benchmark_page(rows, conditions))
        print(f'Report: {args.report}')


def check_arguments(args: argparse.Namespace) -> None:
    """UserError for files that cannot be written and numbers that measure nothing."""
    check_output_file('--json', args.json, '.json')
    check_output_file('--plot', args.plot, '.png', '.svg', '.pdf')
    check_output_file('--report', args.report, '.html', '.htm')
    check_size(args.shape)
    if args.rounds < 2 or args.batch < 1:
        raise UserError(
            f'A median needs two rounds or more of one image or more, got --rounds {args.rounds} and '
            f'--batch {args.batch}. Raise them.')


def random_images(args: argparse.Namespace) -> Tensor:
    """(batch, 3, H, W) of the type, on the device and in the memory format that was asked for."""
    device = usable_device(args.device)
    if device.index is not None and device.type == 'cuda':
        torch.cuda.set_device(device)  # whose memory and time are measured

    images = torch.randn(args.batch, 3, *args.shape).to(device, getattr(torch, args.dtype))
    if args.channels_last:
        images = images.to(memory_format=torch.channels_last)
    return images
