"""Export a trained segmentor or detector as an engine: python tools/export.py CONFIG CHECKPOINT --out DIR"""

import time
from pathlib import Path

from repvgg_mm.commands.flags import add_checkpoint, add_report, load_config, parser_with_config, run_tool
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import convert_checkpoint
from repvgg_mm.export.export import ENGINES, PRECISIONS, Target, export, trtexec
from repvgg_mm.export.quantise import describe
from repvgg_mm.files.atomic import check_output_file
from repvgg_mm.report.page import write_page

DESCRIPTION = 'Fuse a trained model, export it as an ONNX or OpenVINO engine, and prove that it computes the same.'


def main() -> None:
    parser = parser_with_config(DESCRIPTION)
    add_checkpoint(parser)
    parser.add_argument('--out', required=True, help='folder for engine.onnx, or engine.xml and .bin, and engine.json')
    parser.add_argument('--engine', choices=ENGINES, default='onnx', help='onnx runs in ONNX Runtime and TensorRT')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32',
                        help='bf16 (OpenVINO): weights stay float32, a CPU that has bfloat16 computes in it; '
                             'int8 (OpenVINO): quantised on training images, judged on the validation set')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'),
                        help='size of the images; by default that of the first validation image as a test feeds it')
    parser.add_argument('--dynamic', action='store_true', help='any batch, height and width')
    parser.add_argument('--argmax', action='store_true', help='a segmentor ends at its label map')
    parser.add_argument('--preprocess', action='store_true',
                        help='take uint8 BGR images (N, H, W, 3), as cv2.imread gives them, and normalise inside')
    parser.add_argument('--calib-images', type=int, default=Target.calib_images, metavar='N',
                        help='training images from which int8 takes its ranges (default: %(default)s)')
    parser.add_argument('--max-drop', type=float, default=Target.max_drop, metavar='POINTS',
                        help='of mIoU, or of mAP x 100, that int8 may lose; beyond it nothing is written '
                             '(default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='write into a folder that is not empty')
    add_report(parser)
    args = parser.parse_args()
    check_output_file('--report', args.report, '.html', '.htm')
    target = Target(args.engine, args.precision, args.shape, args.dynamic, args.argmax, args.preprocess,
                    args.calib_images, args.max_drop)
    start = time.perf_counter()
    cfg = load_config(args)
    exported = export(
        cfg, args.checkpoint, args.out, target, overwrite=args.overwrite, trust=args.trust_checkpoint,
        progress=lambda step: print(f'[{time.perf_counter() - start:5.1f} s] {step}', flush=True))
    before = 'before quantising ' if args.precision == 'int8' else ''
    for comparison in exported.meta['compared']:
        errors = ', '.join(f'{name} {error:.1e}' for name, error in comparison['errors'].items())
        print(f'Relative error {before}on {"x".join(map(str, comparison["shape"]))}: {errors} '
              f'(at most {exported.meta["tolerance"]:g})')
    if args.precision == 'int8':
        found = exported.meta['quantisation']
        print(f'{found["metric"]} on validation: {found["float32"]:.2f} in float32, {found["int8"]:.2f} in int8'
              f'{describe(found["tried"][-1])}.')
    if exported.meta['task'] == 'detection':
        print('Non-maximum suppression is not in the engine: repvgg_mm.detections.detect does it in numpy.')
    print(f'Wrote {exported.path} and {exported.path.with_suffix(".json").name}.')
    if args.engine == 'onnx':
        print(f'TensorRT, on a machine with a GPU (not run here):\n{trtexec(exported.meta, str(exported.path))}')
    if args.report:
        from repvgg_mm.report.pages import export_page
        checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
        conversion = None if checkpoint.form == 'deploy' else convert_checkpoint(cfg, checkpoint, args.shape)
        write_page(args.report, export_page(exported, cfg, Path(args.config).name, conversion))
        print(f'Report: {args.report}')


if __name__ == '__main__':
    run_tool(main)
