"""The commands and what each can be asked, without torch: `--help` and a wrong flag are answered at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..version import __version__

# As the rooms that do the work name them; tests/commands/test_arguments.py compares.
ENGINES = ('onnx', 'openvino')
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')
IO_DTYPES = ('float32', 'float16')
LAYOUTS = ('native', 'official', 'timm')
WORK = ('forward', 'norm_eval step', 'training step')
CALIB_IMAGES = 100
MAX_DROP = 0.3
LATENCY_SECONDS = 60.0


def command_parser() -> argparse.ArgumentParser:
    """Of `repvgg-mm COMMAND ...`; `command` in what it gives is the file of this folder that does it."""
    parser = argparse.ArgumentParser(
        prog='repvgg-mm', description='RepVGG for the OpenMMLab toolboxes: train, convert, prove, export.')
    parser.add_argument('--version', action='version', version=f'repvgg_mm {__version__}')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for add_flags in (train, test, convert, convert_weights, export, predict, benchmark, demo, make_shapes):
        name = add_flags.__name__
        description = add_flags.__doc__
        command = commands.add_parser(name.replace('_', '-'), help=description, description=description)
        add_flags(command)
        command.set_defaults(command=name)
    return parser


# --- the commands -----------------------------------------------------------------------------------------------------

def train(parser: argparse.ArgumentParser) -> None:
    """Train a segmentor or detector, or go on with a training."""
    add_config(parser)
    add_launch(parser)
    add_trust(parser)
    parser.add_argument('--resume', action='store_true', help='go on from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--amp-dtype', choices=['float16', 'bfloat16'], help='mixed precision in this type')


def test(parser: argparse.ArgumentParser) -> None:
    """Evaluate a segmentor, detector or classifier on its test set."""
    add_config(parser)
    add_checkpoint(parser, engine=True)
    add_device(parser)
    add_launch(parser)
    parser.add_argument('--out', help='folder (masks of a segmentor) or .pkl file for the predictions')
    parser.add_argument('--show', action='store_true', help='show predictions on the screen')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows a picture')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')


def convert(parser: argparse.ArgumentParser) -> None:
    """Fuse every RepVGG block of a trained model, prove it, write checkpoint and config."""
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--out', required=True, help='folder for deploy.pth and deploy.py')
    parser.add_argument('--format', choices=['pth', 'safetensors'], default='pth', help='of the weights')
    add_overwrite(parser)
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='size of the input on which both forms are compared; from the config by default')
    add_report(parser)
    add_latency_seconds(parser, 'the times of both forms')


def convert_weights(parser: argparse.ArgumentParser) -> None:
    """Rename or fuse a file of a RepVGG backbone or classifier, without a config."""
    parser.add_argument('source', metavar='SRC', help='file of any layout (official, mmpretrain, timm) and form')
    parser.add_argument('target', metavar='DST', help='file to write: .pth, or .safetensors')
    parser.add_argument('-a', '--arch', required=True, help='variant, such as RepVGG-A0')
    parser.add_argument('--to', choices=LAYOUTS, default='native', help="names to write; native is mmpretrain's")
    parser.add_argument('--deploy', action='store_true', help='fuse every block')
    parser.add_argument('--overwrite', action='store_true', help='replace a file that is there')
    add_trust(parser)


def export(parser: argparse.ArgumentParser) -> None:
    """Fuse a trained model, export it as an ONNX or OpenVINO engine, and prove that it computes the same."""
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--out', required=True, help='folder for engine.onnx, or engine.xml and .bin, and engine.json')
    parser.add_argument('--engine', choices=ENGINES, default='onnx', help='onnx runs in ONNX Runtime and TensorRT')
    parser.add_argument(
        '--precision', choices=PRECISIONS, default='fp32',
        help='fp16 (ONNX): weights and values in half, what passes its range excepted; '
             'bf16 (OpenVINO): weights stay float32, a CPU that has bfloat16 computes in it; '
             'int8: quantised on training images. fp16 and int8 are judged on the validation set')
    parser.add_argument(
        '--io-dtype', choices=IO_DTYPES, default='float32', help='of inputs and outputs of an engine in fp16')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='size of the images; by default that of the first validation image as a test feeds it')
    parser.add_argument('--dynamic', action='store_true', help='any batch, height and width')
    parser.add_argument('--argmax', action='store_true', help='a segmentor ends at its label map')
    parser.add_argument(
        '--nms', action='store_true',
        help="a detector ends at its detections, chosen by the config's test_cfg; one of two stages always does")
    parser.add_argument(
        '--preprocess', action='store_true',
        help='take uint8 BGR images (N, H, W, 3), as cv2.imread gives them, and normalise inside')
    parser.add_argument(
        '--calib-images', type=int, default=CALIB_IMAGES, metavar='N',
        help='training images from which fp16 and int8 take ranges (default: %(default)s)')
    parser.add_argument(
        '--max-drop', type=float, default=MAX_DROP, metavar='POINTS',
        help='of mIoU, or of mAP x 100, that fp16 and int8 may lose; beyond it nothing is written '
             '(default: %(default)s)')
    parser.add_argument(
        '--kit', metavar='DIR',
        help='also write a folder to hand over: engine, calibration inputs, expected outputs, a check without torch')
    add_overwrite(parser)
    add_report(parser)
    add_latency_seconds(parser, 'the times of --report')


def predict(parser: argparse.ArgumentParser) -> None:
    """Draw predictions of images and videos: classes with a legend, or boxes and masks."""
    add_config(parser)
    add_checkpoint(parser, engine=True)
    parser.add_argument('images', nargs='+', help="images, videos, folders of them, quoted patterns such as 'a/*.jpg'")
    parser.add_argument(
        '--out', required=True,
        help='folder for the pictures (.png) and videos (.mp4), in folders like those of the sources')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw detections from this score on')
    add_device(parser, of_checkpoint='cuda if there is a GPU, else cpu')
    parser.add_argument('--overwrite', action='store_true', help='replace pictures that exist')


def benchmark(parser: argparse.ArgumentParser) -> None:
    """Time models of configs, interleaved in one process, after a warm-up. No weights are loaded."""
    parser.add_argument(
        'configs', nargs='+', metavar='CONFIG_OR_ENGINE',
        help='configs, whose models with RepVGG blocks are measured in both forms; and engines (.onnx, '
             '.xml, .plan), with --work forward')
    parser.add_argument('--shape', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1, help='images a call')
    parser.add_argument('--work', nargs='+', choices=WORK, default=['forward'])
    add_device(parser, of_checkpoint='cuda if there is a GPU, else cpu')
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


def demo(parser: argparse.ArgumentParser) -> None:
    """From nothing to a verified deploy segmentor and detector, with pictures."""
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--iters', type=int, help='training steps, those of the configs by default')
    add_verbose(parser)


def make_shapes(parser: argparse.ArgumentParser) -> None:
    """Write the generated dataset of the demo."""
    parser.add_argument('root', help='folder to write to')
    parser.add_argument(
        '--classification', action='store_true',
        help='folders of images as ImageNet has them, instead of masks and boxes')
    parser.add_argument('--train', type=int, help='training images (800), or those of each class (200)')
    parser.add_argument('--val', type=int, help='validation images (80), or those of each class (40)')
    parser.add_argument('--size', type=int, help='side in pixels (96, or 64)')
    parser.add_argument('--seed', type=int, default=0)


# --- flags of several -------------------------------------------------------------------------------------------------

def add_config(parser: argparse.ArgumentParser) -> None:
    """The config, --cfg-options and --verbose."""
    parser.add_argument('config', help='config file, or the name of one that comes with this package')
    add_verbose(parser)
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='override settings of the config, for example model.backbone.init_cfg=None; '
             'lists as key="[a,b]" without white space')


def add_checkpoint(parser: argparse.ArgumentParser, *, engine: bool = False) -> None:
    """The checkpoint, or engine, and --trust-checkpoint."""
    kinds = 'checkpoint file'
    if engine:
        kinds += ', or engine (.onnx, .xml, or .plan of TensorRT) that export wrote'
    parser.add_argument('checkpoint', help=kinds)
    add_trust(parser)


def add_device(parser: argparse.ArgumentParser, *, of_checkpoint: str = '') -> None:
    """--device, of engines and, where a command takes it, of a model of torch."""
    of_engine = 'of an engine: cpu; of .onnx also cuda and tensorrt, of .xml gpu, of .plan cuda alone'
    if of_checkpoint:
        of_engine += f'; of a model of torch: {of_checkpoint}'
    parser.add_argument('--device', help=f'{of_engine}. A second one is cuda:1')


def add_launch(parser: argparse.ArgumentParser) -> None:
    """--work-dir and what launchers pass."""
    parser.add_argument('--work-dir', help='folder for logs and results; work_dirs/CONFIG_NAME by default')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], help='how several processes were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """--verbose."""
    parser.add_argument(
        '--verbose', action='store_true', help='show all that is logged, printed and warned of, by other packages too')


def add_trust(parser: argparse.ArgumentParser) -> None:
    """--trust-checkpoint."""
    parser.add_argument(
        '--trust-checkpoint', action='store_true',
        help='unpickle whatever a checkpoint contains; it can then run any code')


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """--overwrite, of a folder."""
    parser.add_argument('--overwrite', action='store_true', help='write into a folder that is not empty')


def add_report(parser: argparse.ArgumentParser) -> None:
    """--report."""
    parser.add_argument('--report', type=Path, metavar='FILE.html', help='write what was found as one page')


def add_latency_seconds(parser: argparse.ArgumentParser, times: str) -> None:
    """--latency-seconds, for `times`."""
    parser.add_argument(
        '--latency-seconds', type=float, default=LATENCY_SECONDS, metavar='S',
        help=f'for {times}, three rounds in any case; 0 leaves them out (default: %(default)s)')


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for; `command` is the name of the file that does it.

    Where the package argcomplete is installed, a shell can complete commands and flags.
    """
    parser = command_parser()
    try:
        import argcomplete
    except ImportError:
        pass
    else:
        argcomplete.autocomplete(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    return parser.parse_args(with_two_sizes(words))


def with_two_sizes(words: Sequence[str]) -> list[str]:
    """`--shape 64x96` as `--shape 64 96`."""
    apart = []
    for before, word in zip(['', *words], words):
        is_both = before == '--shape' and re.fullmatch(r'\d+[x,]\d+', word)
        apart += re.split('[x,]', word) if is_both else [word]
    return apart
