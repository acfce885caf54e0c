"""Every detector of configs/ as engines, with and without `--nms`, beside mmdet's own predictions of an image.

    python benchmarks/engine_detectors.py IMAGE [--only WORD ...] [--shape 256 320] [--checkpoint FILE]

Weights are random, norms have random statistics, and the last layers are scaled so that thresholds, suppression and
limits have work to do; or weights are those of --checkpoint, for the one config that --only leaves. A row has the
number of mmdet's detections, how many ONNX Runtime and OpenVINO find, how many of mmdet's are among them (same class,
within half a pixel and 1e-3 of the score), and the largest differences of those. Both run the graph of one export.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mmcv
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repvgg_mm.__main__ import run_script
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.model import EngineModel
from repvgg_mm.errors import UserError
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import prepare
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.model import build_model, is_detector

CONFIGS = Path(__file__).parents[1] / 'configs'
PIXELS, SCORE = 0.5, 1e-3  # by which a detection of the engine may differ
LAST_LAYERS = [
    f'{part}_{kind}' for kind in ('cls', 'reg')
    for part in ('retina', 'atss', 'gfl', 'conv', 'tood', 'rtm', 'rpn', 'fc')]
SCORES = 2., -3.  # standard deviation and mean of the logits of classes
BOXES = 0.5, 0.5  # and of what boxes are decoded from: neither points nor all as large as the image


class Agreement(NamedTuple):
    """How many of mmdet's detections an engine has too, and the largest differences of those."""

    same: int
    pixels: float
    score: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='any picture')
    parser.add_argument('--only', nargs='+', default=[''], metavar='WORD', help='configs with one of these in the name')
    parser.add_argument('--shape', type=int, nargs=2, default=(256, 320), metavar=('H', 'W'))
    parser.add_argument('--checkpoint', metavar='FILE', help='trained weights, in training form')
    args = parser.parse_args()
    chosen = [path for path in sorted(CONFIGS.glob('*.py')) if any(word in path.name for word in args.only)]
    if args.checkpoint and len(chosen) != 1:
        parser.error(f'--checkpoint is of one config, and --only leaves {len(chosen)}')
    picture = mmcv.imresize(mmcv.imread(args.image), tuple(args.shape)[::-1])
    image = torch.from_numpy(picture).permute(2, 0, 1)

    print('| config | detector | suppression | mmdet finds | ONNX Runtime finds, the same, pixels, score | OpenVINO |\n'
          '|---|---|---|---|---|---|')
    for path in chosen:
        cfg = Config.fromfile(path)
        if is_detector_config(cfg):
            for target in targets_of(cfg, args.shape):
                print(f'| `{path.name}` | {cfg.model.type} | {"inside" if target.nms else "outside"} | '
                      f'{row_of(cfg, image, target, args.checkpoint)} |', flush=True)


def is_detector_config(cfg: Config) -> bool:
    return cfg.get('default_scope') == 'mmdet' and is_detector(build_model(cfg))


def targets_of(cfg: Config, shape: Sequence[int]) -> list[Target]:
    """One with suppression outside the engine, where there is that, and one with it inside."""
    inside = Target(shape=tuple(shape), nms=True)
    return [inside] if 'rpn_head' in cfg.model else [replace(inside, nms=False), inside]


def row_of(cfg: Config, image: Tensor, target: Target, trained: str | None) -> str:
    """The cells of a table behind the name; of an export that is refused its reason."""
    torch.manual_seed(0)
    cfg.load_from = None
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg).eval()
    if trained:
        Checkpoint.read(trained).load_into(model, cfg)
    else:
        randomise(model)
        spread_outputs(model, image)
    expected = predictions(model, image)

    cells = [str(len(expected))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(dict(state_dict=model.state_dict()), folder / 'checkpoint.pth')
        try:
            prepared = prepare(cfg, Checkpoint.read(folder / 'checkpoint.pth'), target, progress=str)
        except UserError as error:
            return f'refused: {error} | | '

        for kind in ('onnx', 'openvino'):
            (folder / kind).mkdir()
            path, _ = write_engine(prepared.graph, replace(prepared.description, engine=kind), folder / kind)
            found = predictions(EngineModel(cfg, Engine(path)), image)
            seen = compare(found, expected)
            cells.append(f'{len(found)}, {seen.same}, {seen.pixels:.0e}, {seen.score:.0e}')
    return ' | '.join(cells)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Statistics and weights of every BatchNorm, so that a wrong fusing is seen."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)


@torch.no_grad()
def spread_outputs(model: nn.Module, image: Tensor) -> None:
    """Scale the last layers in the order in which they are called, each on what the image makes there."""
    def scale(layer: nn.Module, inputs: tuple, outputs: Tensor) -> Tensor:
        if layer in scaled:
            return outputs
        scaled.add(layer)
        spread, centre = wanted[layer]
        factor = spread / outputs.std()
        shift = centre - factor * outputs.mean()
        layer.weight.mul_(factor)
        layer.bias.mul_(factor).add_(shift)
        return outputs * factor + shift

    scaled: set[nn.Module] = set()
    wanted, handles = {}, []
    for name, layer in model.named_modules():
        words = [word for word in name.split('.') if not word.isdigit()]
        last = words[-1] if words else ''
        if last in LAST_LAYERS and isinstance(layer, (nn.Conv2d, nn.Linear)):
            wanted[layer] = SCORES if 'cls' in last else BOXES
            handles.append(layer.register_forward_hook(scale))
    predictions(model, image)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def predictions(model: nn.Module, image: Tensor) -> InstanceData:
    shape = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1., 1.)))
    found, = model.test_step(dict(inputs=[image], data_samples=[sample]))
    return found.pred_instances


def compare(found: InstanceData, expected: InstanceData) -> Agreement:
    """Each of mmdet's detections with the nearest of the engine's of its class."""
    same, pixels, scores = 0, [0.], [0.]
    for box, score, label in zip(expected.bboxes, expected.scores, expected.labels):
        of_class = found.labels == label
        if not of_class.any():
            continue
        distances = (found.bboxes[of_class] - box).abs().amax(1)
        nearest = distances.argmin()
        difference = (found.scores[of_class][nearest] - score).abs().item()
        if distances[nearest] <= PIXELS and difference <= SCORE:
            same += 1
            pixels.append(distances[nearest].item())
            scores.append(difference)
    return Agreement(same, max(pixels), max(scores))


if __name__ == '__main__':
    run_script(main)
