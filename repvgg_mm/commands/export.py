"""Export a trained model as an engine, and prove that it computes the same."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..deploy.checkpoint import Checkpoint
from ..engine.description import Description, Half
from ..export.export import export
from ..export.target import Target
from ..export.tensorrt import tensorrt_commands
from ..files.atomic import check_output_file
from ..kit.kit import check_kit, write_kit
from ..precision.quantise import describe_attempt
from ..pretrained import listed
from .screen import Screen, open_screen, timed_progress
from .setup import check_latency_seconds, load_config


def run(args: argparse.Namespace) -> None:
    with open_screen(args.verbose) as screen:
        export_engine(args, screen)


def export_engine(args: argparse.Namespace, screen: Screen) -> None:
    """Read the checkpoint once, export, tell what was found, write the page."""
    check_output_file('--report', args.report, '.html', '.htm')
    check_latency_seconds(args.latency_seconds)
    target = Target(
        args.engine, args.precision, args.shape, args.dynamic, args.argmax, args.preprocess,
        args.calib_images, args.max_drop, args.nms, args.io_dtype)

    progress = timed_progress(screen)
    cfg = load_config(args)
    if args.kit is not None:
        check_kit(cfg, Path(args.kit), Path(args.out), target, overwrite=args.overwrite)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    exported = export(cfg, checkpoint, args.out, target, overwrite=args.overwrite, progress=progress)

    if args.kit is not None:
        write_kit(cfg, exported, Path(args.kit), calib_images=args.calib_images, progress=progress)

    tell(exported.description, exported.path, screen)
    if args.kit is not None:
        screen.say(f'Kit to hand over: {args.kit}')
    if args.report:
        from ..report.export_page import export_page
        from ..report.page import write_page
        page = export_page(
            exported, cfg, Path(args.config).name, latency_seconds=args.latency_seconds, progress=progress)
        write_page(args.report, page)
        screen.say(f'Report: {args.report}')


def tell(description: Description, path: Path, screen: Screen) -> None:
    """What was found and written, and what to do next."""
    found = description.quantisation
    before = '' if found is None else 'before quantising '
    for comparison in description.compared:
        errors = ', '.join(f'{name} {error:.1e}' for name, error in comparison.errors.items())
        size = 'x'.join(map(str, comparison.shape))
        screen.say(f'Relative error {before}on {size}: {errors} (at most {description.tolerance:g})')

    if found is not None:
        how = describe_attempt(found.tried[-1])
        screen.say(f'{found.metric} on validation: {found.float32:.2f} in float32, {found.int8:.2f} in int8{how}.')
    if description.half is not None:
        tell_half(description.half, screen)
    if description.nms == 'outside':
        screen.say('Non-maximum suppression is outside (--nms: inside): repvgg_mm.engine.detect does it in numpy.')

    screen.say(f'Wrote {path} and {path.with_suffix(".json").name}.')
    if description.engine == 'onnx':
        faster = '; --precision fp16 is faster' if description.precision == 'fp32' else ''
        commands = tensorrt_commands(description, str(path))
        screen.say(f'TensorRT, on a machine with a GPU (not run here{faster}):\n{commands}')


def tell_half(half: Half, screen: Screen) -> None:
    """What of an engine in fp16 stays in float32, and what its metric is."""
    if half.float32:
        layers = listed('operators', half.float32)
        screen.say(f'In float32, since float16 ends at 65504: {layers}')
    if half.metric is None:
        screen.say('Its metric was not measured: the config has no validation data here.')
    else:
        screen.say(
            f'{half.metric} on validation: {half.metric_float32:.2f} in float32, {half.metric_half:.2f} in fp16.')
