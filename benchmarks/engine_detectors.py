"""Every detector of configs/ as an ONNX engine, with and without `--nms`, beside mmdet's own predictions of an image.

    python benchmarks/engine_detectors.py IMAGE [--only WORD ...] [--shape 256 320] [--engine onnx]

Weights are random, norms have random statistics, and the scores are spread so that thresholds, suppression and limits
have work to do. A row has the number of mmdet's detections, how many of them the engine has too (same class, within
half a pixel and 1e-3 of the score), and the largest differences of those.
"""

import argparse
import tempfile
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
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.model import build_model, is_detector

CONFIGS = Path(__file__).parents[1] / 'configs'
PIXELS, SCORE = 0.5, 1e-3  # by which a detection of the engine may differ
SPREAD, CENTRE = 2., -3.   # of the classification logits


class Agreement(NamedTuple):
    """How many of mmdet's detections an engine has too, and the largest differences of those."""

    expected: int
    found: int
    same: int
    pixels: float
    score: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='any picture')
    parser.add_argument('--only', nargs='+', default=[''], metavar='WORD', help='configs with one of these in the name')
    parser.add_argument('--shape', type=int, nargs=2, default=(256, 320), metavar=('H', 'W'))
    parser.add_argument('--engine', choices=['onnx', 'openvino'], default='onnx')
    args = parser.parse_args()
    picture = mmcv.imresize(mmcv.imread(args.image), tuple(args.shape)[::-1])
    image = torch.from_numpy(picture).permute(2, 0, 1)

    print('| config | detector | NMS | detections, mmdet and engine | the same | pixels | score |\n'
          '|---|---|---|---|---|---|---|')
    for path in sorted(CONFIGS.glob('*.py')):
        cfg = Config.fromfile(path)
        if is_detector_config(cfg) and any(word in path.name for word in args.only):
            for inside in (False, True):
                print(f'| `{path.name}` | {cfg.model.type} | {"inside" if inside else "outside"} | '
                      f'{row_of(cfg, image, Target(args.engine, shape=args.shape, nms=inside))} |', flush=True)


def is_detector_config(cfg: Config) -> bool:
    return cfg.get('default_scope') == 'mmdet' and is_detector(build_model(cfg))


def row_of(cfg: Config, image: Tensor, target: Target) -> str:
    """The cells of a table behind the name; of an export that is refused its reason."""
    torch.manual_seed(0)
    cfg.load_from = None
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg).eval()
    randomise(model)
    spread_scores(model, image)
    expected = predictions(model, image)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / 'checkpoint.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        try:
            exported = export(cfg, Checkpoint.read(checkpoint), Path(folder) / 'engine', target, progress=str)
        except UserError as error:
            return f'refused: {error} | | |'
        found = predictions(EngineModel(cfg, Engine(exported.path)), image)

    seen = compare(found, expected)
    return f'{seen.expected}, {seen.found} | {seen.same} | {seen.pixels:.1e} | {seen.score:.1e}'


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
def spread_scores(model: nn.Module, image: Tensor) -> None:
    """Scale the classification layers in the order in which they are called, each on what the image makes there."""
    def scale(layer: nn.Module, inputs: tuple, logits: Tensor) -> Tensor:
        if layer in scaled:
            return logits
        scaled.add(layer)
        factor = SPREAD / logits.std()
        shift = CENTRE - factor * logits.mean()
        layer.weight.mul_(factor)
        layer.bias.mul_(factor).add_(shift)
        return logits * factor + shift

    scaled: set[nn.Module] = set()
    handles = []
    for name, layer in model.named_modules():
        is_classifier = 'cls' in name.rsplit('.', 1)[-1] or 'rtm_cls' in name or 'multi_level_conv_cls' in name
        if is_classifier and isinstance(layer, (nn.Conv2d, nn.Linear)):
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
    return Agreement(len(expected), len(found), same, max(pixels), max(scores))


if __name__ == '__main__':
    run_script(main)
