"""Both forms of models, engines and rivals side by side."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ..benchmark.benchmark import Setting, benchmark, build_forms, engine_versions, load_engines
from ..benchmark.output import draw, table, write_json
from ..engine.description import is_engine
from ..errors import UserError
from ..files.atomic import check_output_file
from ..openmmlab.device import usable_device
from ..openmmlab.model import check_size


def run(args: argparse.Namespace) -> None:
    check_arguments(args)

    engines = load_engines((path for path in args.configs if is_engine(path)), args.device)
    models = build_forms([path for path in args.configs if not is_engine(path)])
    amp = getattr(torch, args.amp) if args.amp else None
    setting = Setting(random_images(args, of_models=bool(models)), args.rounds, amp, args.compile)
    rows = benchmark(models, setting, args.work, engines)

    conditions = setting.conditions() | engine_versions(engines)
    words = [f'{key} {value}' for key, value in conditions.items()]
    print('\n' + ', '.join(words) + '\n' + table(rows))

    if args.json:
        write_json(args.json, rows, conditions)
    if args.plot:
        draw(args.plot, rows, conditions)
    if args.report:
        from ..benchmark.page import benchmark_page
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


def random_images(args: argparse.Namespace, *, of_models: bool = True) -> Tensor:
    """(batch, 3, H, W) of the type and in the memory format that was asked for.

    For models of torch they are on the device, of which a TensorRT engine's is cuda; for engines alone on the CPU.
    """
    name = args.device and args.device.replace('tensorrt', 'cuda')
    device = usable_device(name if of_models else 'cpu')
    if device.index is not None and device.type == 'cuda':
        torch.cuda.set_device(device)  # whose memory and time are measured

    images = torch.randn(args.batch, 3, *args.shape).to(device, getattr(torch, args.dtype))
    if args.channels_last:
        images = images.to(memory_format=torch.channels_last)
    return images
