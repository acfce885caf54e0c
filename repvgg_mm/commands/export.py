"""Export a trained model as an engine, and prove that it computes the same."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..deploy.checkpoint import Checkpoint
from ..engine.description import Description
from ..export.export import export, trtexec
from ..export.quantise import describe_attempt
from ..export.target import ENGINES, PRECISIONS, Target
from ..files.atomic import check_output_file
from .flags import add_checkpoint, add_report, load_config, parser_with_config
from .screen import Screen, open_screen

DESCRIPTION = 'Fuse a trained model, export it as an ONNX or OpenVINO engine, and prove that it computes the same.'


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_with_config(DESCRIPTION)
    add_checkpoint(parser)
    parser.add_argument('--out', required=True, help='folder for engine.onnx, or engine.xml and .bin, and engine.json')
    parser.add_argument('--engine', choices=ENGINES, default='onnx', help='onnx runs in ONNX Runtime and TensorRT')
    parser.add_argument(
        '--precision', choices=PRECISIONS, default='fp32',
        help='bf16 (OpenVINO): weights stay float32, a CPU that has bfloat16 computes in it; '
             'int8 (OpenVINO): quantised on training images, judged on the validation set')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='size of the images; by default that of the first validation image as a test feeds it')
    parser.add_argument('--dynamic', action='store_true', help='any batch, height and width')
    parser.add_argument('--argmax', action='store_true', help='a segmentor ends at its label map')
    parser.add_argument(
        '--preprocess', action='store_true',
        help='take uint8 BGR images (N, H, W, 3), as cv2.imread gives them, and normalise inside')
    parser.add_argument(
        '--calib-images', type=int, default=Target.calib_images, metavar='N',
        help='training images from which int8 takes its ranges (default: %(default)s)')
    parser.add_argument(
        '--max-drop', type=float, default=Target.max_drop, metavar='POINTS',
        help='of mIoU, or of mAP x 100, that int8 may lose; beyond it nothing is written (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='write into a folder that is not empty')
    add_report(parser)
    args = parser.parse_args(argv)
    with open_screen(args.verbose) as screen:
        export_engine(args, screen)


def export_engine(args: argparse.Namespace, screen: Screen) -> None:
    """Read the checkpoint once, export, tell what was found, write the page."""
    check_output_file('--report', args.report, '.html', '.htm')
    target = Target(
        args.engine, args.precision, args.shape, args.dynamic, args.argmax, args.preprocess,
        args.calib_images, args.max_drop)

    progress = _timed_progress(screen)
    cfg = load_config(args)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    exported = export(cfg, checkpoint, args.out, target, overwrite=args.overwrite, progress=progress)

    tell(exported.description, exported.path, screen)
    if args.report:
        from ..report.export_page import export_page
        from ..report.page import write_page
        write_page(args.report, export_page(exported, cfg, Path(args.config).name))
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
        last = found.tried[-1]
        how = describe_attempt(last.equalised, last.float32)
        screen.say(f'{found.metric} on validation: {found.float32:.2f} in float32, {found.int8:.2f} in int8{how}.')
    if description.task == 'detection':
        screen.say('Non-maximum suppression is not in the engine: repvgg_mm.engine.detect does it in numpy.')

    screen.say(f'Wrote {path} and {path.with_suffix(".json").name}.')
    if description.engine == 'onnx':
        screen.say(f'TensorRT, on a machine with a GPU (not run here):\n{trtexec(description, str(path))}')


def _timed_progress(screen: Screen) -> Callable[[str], None]:
    """Says a step with the seconds since now; a table, of several lines, with --verbose alone."""
    start = time.perf_counter()

    def progress(step: str) -> None:
        if '\n' in step and not screen.verbose:
            return
        seconds = time.perf_counter() - start
        screen.say(f'[{seconds:5.1f} s] {step}')
    return progress
