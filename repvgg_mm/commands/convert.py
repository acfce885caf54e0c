"""Convert a trained whole model: prove it, write checkpoint and config."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..deploy.checkpoint import Checkpoint
from ..deploy.conversion import convert_checkpoint, write_deploy
from ..deploy.costs import costs_table, measure_costs
from ..files.atomic import check_output_file, check_output_folder
from .screen import Screen, command_line, open_screen, timed_progress
from .setup import check_latency_seconds, load_config


def run(args: argparse.Namespace) -> None:
    with open_screen(args.verbose) as screen:
        convert(args, screen)


def convert(args: argparse.Namespace, screen: Screen) -> None:
    """Read, convert, prove, measure, write; in this order, so that nothing is written that was not proven."""
    out = Path(args.out)
    check_output_folder(out, args.overwrite)
    check_output_file('--report', args.report, '.html', '.htm')
    check_latency_seconds(args.latency_seconds)

    progress = timed_progress(screen)
    cfg = load_config(args)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    conversion = convert_checkpoint(cfg, checkpoint, args.shape)
    costs = measure_costs(conversion, latency_seconds=args.latency_seconds, progress=progress)
    screen.say(costs_table(conversion, costs, all_errors=args.verbose))

    weights = write_deploy(conversion, out, args.format)
    config = out / 'deploy.py'
    command = command_line('test', config, weights)
    screen.say(f'Wrote {weights} and {config}. Next:\n  {command}')

    if args.report:
        from ..report.conversion_page import conversion_page
        from ..report.page import write_page
        progress('Comparing both forms on images')
        page = conversion_page(conversion, costs, cfg, Path(args.config).name, progress)
        write_page(args.report, page)
        screen.say(f'Report: {args.report}')
