"""Both forms of models, engines and rivals side by side: python tools/benchmark.py CONFIG ... --plot FILE.png"""

import argparse
from pathlib import Path

import torch

from repvgg_mm.commands.flags import add_report, run_tool
from repvgg_mm.engine.engine import is_engine
from repvgg_mm.errors import UserError
from repvgg_mm.files.atomic import check_output_file
from repvgg_mm.openmmlab.device import usable_device
from repvgg_mm.openmmlab.model import check_size
from repvgg_mm.report.benchmark import (
    WORK,
    Setting,
    benchmark,
    build_forms,
    draw,
    engine_versions,
    load_engines,
    table,
    write_json,
)
from repvgg_mm.report.page import write_page


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Time models of configs, interleaved in one process, after a warm-up. No weights are loaded.')
    parser.add_argument('configs', nargs='+', metavar='CONFIG_OR_ENGINE',
                        help='configs, whose models with RepVGG blocks are measured in both forms; and engines (.onnx, '
                             '.xml), with --work forward')
    parser.add_argument('--shape', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1, help='images a call')
    parser.add_argument('--work', nargs='+', choices=WORK, default=['forward'])
    parser.add_argument('--device', help='a GPU by default if there is one')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32')
    parser.add_argument('--amp', choices=['bfloat16', 'float16'], help='torch.autocast in this type')
    parser.add_argument('--compile', action='store_true',
                        help='torch.compile; steps on a GPU only; what a step keeps is that of the uncompiled model')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--plot', type=Path, help='file for a picture (.png, .svg, .pdf)')
    add_report(parser)
    args = parser.parse_args()
    check_output_file('--json', args.json, '.json')
    check_output_file('--plot', args.plot, '.png', '.svg', '.pdf')
    check_output_file('--report', args.report, '.html', '.htm')
    configs = [path for path in args.configs if not is_engine(path)]
    check_size(args.shape)
    if args.rounds < 2 or args.batch < 1:
        raise UserError(f'A median needs two rounds or more of one image or more, got --rounds {args.rounds} and '
                        f'--batch {args.batch}. Raise them.')
    device = usable_device(args.device)
    if device.index is not None and device.type == 'cuda':
        torch.cuda.set_device(device)  # whose memory and time are measured
    inputs = torch.randn(args.batch, 3, *args.shape).to(device, getattr(torch, args.dtype))
    if args.channels_last:
        inputs = inputs.to(memory_format=torch.channels_last)
    setting = Setting(inputs, args.rounds, args.amp and getattr(torch, args.amp), args.compile)
    engines = load_engines(path for path in args.configs if is_engine(path))
    rows = benchmark(build_forms(configs), setting, args.work, engines)
    conditions = setting.conditions() | engine_versions(engines)
    print('\n' + ', '.join(f'{key} {value}' for key, value in conditions.items()) + '\n' + table(rows))
    if args.json:
        write_json(args.json, rows, conditions)
    if args.plot:
        draw(args.plot, rows, conditions)
    if args.report:
        from repvgg_mm.report.pages import benchmark_page
        write_page(args.report, benchmark_page(rows, conditions))
        print(f'Report: {args.report}')


if __name__ == '__main__':
    run_tool(main)
