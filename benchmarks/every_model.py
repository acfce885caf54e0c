"""Every composition of the toolboxes' own configs with a RepVGG: converted, compared, exported or refused, as a table.

    python benchmarks/every_model.py [--toolbox mmseg mmdet] [--only WORD ...] [--shape 128 160] [--no-export]
        [--images FOLDER]

Of each set of types (segmentor or detector, neck, heads, losses left out) the first config is taken, its backbone
replaced by RepVGG-A0 with the same output strides, and the channels that follow it by those of RepVGG. The norms
have random statistics. A row says by which means both forms were compared, the worst error in float32 and in
float64, and what became of the export. With --images, predictions of what was exported on pictures of a folder are
compared with PyTorch's: the share of equal pixels, or of boxes that the other one has too. The last line counts; its
stack traces should be 0.
"""

import argparse
import copy
import io
import logging
import os
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import mmcv
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.utils import get_installed_path
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from repvgg_mm import RepVGG, UserError, compare_models, whole_model_convert
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.deploy.conversion import convert_checkpoint
from repvgg_mm.engine import Engine
from repvgg_mm.engine.model import EngineModel
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.config import config_dicts
from repvgg_mm.openmmlab.model import build_model

ARCH = 'A0'
MOST_IMAGES = 4
SAME_BOX = dict(iou=0.99, score=1e-3)
LARGER = (448, 512)  # for models that cannot take --shape
LEFT_OUT = ('Loss', 'Assigner', 'Sampler', 'Cost', 'Hook', 'DataPreprocessor', 'BN', 'GN', 'ReLU', 'init')


class Row(NamedTuple):
    name: str
    way: str = ''
    float32: str = ''
    float64: str = ''
    not_run: str = ''
    exported: str = ''
    predicted: str = ''
    failed: str = ''  # 'stack trace', 'refused', 'not built'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--toolbox', nargs='+', default=['mmseg', 'mmdet'])
    parser.add_argument('--only', nargs='+', metavar='WORD', help='only configs with one of these in their path')
    parser.add_argument('--shape', nargs=2, type=int, default=(128, 160))
    parser.add_argument('--export', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--images', type=Path, help='a folder of pictures on which engines predict')
    parser.add_argument('--traces', action='store_true', help='print stack traces')
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')

    images = sorted(args.images.glob('*.jpg'))[:MOST_IMAGES] if args.images else []
    print('| config | compared | float32 | float64 | not compared | exported | predictions |\n' + '|---' * 7 + '|')
    counts = Counter()
    for toolbox in args.toolbox:
        for name, cfg in compositions(toolbox, args.only):
            row = try_model(f'{toolbox}: {name}', cfg, tuple(args.shape), args.export, args.traces, images)
            counts[row.failed.partition(':')[0] or 'converted'] += 1
            counts['exported'] += row.exported.startswith('error')
            counts['predicted the same'] += row.predicted.startswith('100.00 %')
            print('| ' + ' | '.join([*row[:5], row.failed + ' ' + row.exported, row.predicted]) + ' |', flush=True)
    print(', '.join(f'{what} {count}' for what, count in counts.items()))


def compositions(toolbox: str, words: list[str] | None) -> Iterator[tuple[str, Config]]:
    """Path and config of the first config of each set of types."""
    folder = Path(get_installed_path(toolbox)) / '.mim' / 'configs'
    os.chdir(folder.parent)  # configs of distillation name those of their teachers by 'configs/...'
    seen = set()
    for path in sorted(folder.glob('*/*.py')):
        name = f'{path.parent.name}/{path.stem}'
        if path.parent.name == '_base_' or (words and not any(word in name for word in words)):
            continue
        try:
            with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                cfg = Config.fromfile(path)
        except Exception:  # of another project's config: a file that is not there, a package that is missing
            continue

        types = signature(cfg)
        if types and types not in seen:
            seen.add(types)
            yield name, cfg


def signature(cfg: Config) -> frozenset[str] | None:
    """The types in the model without backbone, losses and what belongs to training."""
    if not any('backbone' in part for part in config_dicts(cfg.get('model', {}))):
        return None
    backbones = {id(part) for one in holders(cfg) for part in config_dicts(one.backbone)}
    types = {str(part.get('type')) for part in config_dicts(cfg.model) if id(part) not in backbones}
    return frozenset(name for name in types if not any(word in name for word in LEFT_OUT))


def holders(cfg: Config) -> list:
    """The parts of a config that have a backbone: the model, and those inside of others."""
    return [part for part in config_dicts(cfg.model) if isinstance(part.get('backbone'), dict)]


def try_model(
    name: str, cfg: Config, shape: tuple[int, int], with_export: bool, traces: bool, images: list[Path]
) -> Row:
    def failed(kind: str, error: Exception, **known: str) -> Row:
        if traces and kind != 'refused':
            traceback.print_exception(error)
        first = str(error).strip().splitlines()[0] if str(error).strip() else ''
        return Row(name, failed=f'{kind}: {type(error).__name__} {first}'.replace('|', '/')[:300], **known)

    try:
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        if 'teacher_ckpt' in cfg.model:
            cfg.model.teacher_ckpt = None
        for holder in holders(cfg):
            replace_backbone(holder)
        for part in config_dicts(cfg.model):
            if 'max_per_img' in part:
                part['max_per_img'] = 50  # regions of the second stage: a thousand take minutes in float64
            part.pop('init_cfg', None)
            part.pop('pretrained', None)
        torch.manual_seed(0)
        model = build_model(cfg)
        model.init_weights()
        randomise_norms(model)
        model.eval()
        if not any(isinstance(module, RepVGG) for module in model.modules()):
            raise ValueError('no RepVGG in it')
    except Exception as error:
        return failed('not built', error)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trained.pth'
        torch.save(dict(meta={}, state_dict=model.state_dict()), path)
        try:
            checkpoint = Checkpoint.read(path)
            try:
                conversion = convert_checkpoint(cfg, checkpoint, shape)
            except UserError:
                shape = LARGER
                conversion = convert_checkpoint(cfg, checkpoint, shape)
            errors = conversion.errors
            in_float32 = compare_models(conversion.trained, conversion.deploy, conversion.inputs)
            exact = conversion.trained.double()
            in_float64 = compare_models(exact, whole_model_convert(exact), conversion.inputs)
        except UserError as error:
            return failed('refused', error)
        except Exception as error:
            return failed('stack trace', error)

        known = dict(
            way=errors.way, not_run=', '.join(errors.not_run),
            float32=f'{in_float32.worst:.0e}', float64=f'{in_float64.worst:.0e}')
        if not with_export:
            return Row(name, **known)
        try:
            done = export(cfg, checkpoint, Path(folder) / 'engine', Target(shape=shape), progress=lambda _: None)
        except UserError as error:
            return Row(name, exported='refused: ' + str(error).splitlines()[0][:250].replace('|', '/'), **known)
        except Exception as error:
            return failed('stack trace', error, **known)
        worst = max(done.description.compared[0].errors.values())
        known['exported'] = f'error {worst:.0e}'
        if not images:
            return Row(name, **known)
        try:
            engine = Engine(Path(folder) / 'engine' / 'engine.onnx', threads=1)
            return Row(name, predicted=compare_predictions(cfg, engine, checkpoint, images), **known)
        except UserError as error:
            return Row(name, predicted=f'refused: {error}'[:250].replace('|', '/'), **known)
        except Exception as error:
            return failed('stack trace', error, **known)


def compare_predictions(cfg: Config, engine: Engine, checkpoint: Checkpoint, images: list[Path]) -> str:
    """The share of pixels or boxes on which an engine and the trained model agree."""
    cfg = copy.deepcopy(cfg)
    for part in config_dicts(cfg.model):
        if 'score_thr' in part:
            part['score_thr'] = 0  # of a network that learned nothing no box would be left
    trained = load_model(cfg, checkpoint)
    deployed = EngineModel(cfg, engine).eval()

    same, total, classes = 0, 0, set()
    for image in images:
        first, second = (predict(model, image, engine.description.input.shape[2:]) for model in (trained, deployed))
        if 'pred_sem_seg' in first:
            equal = first.pred_sem_seg.data == second.pred_sem_seg.data
            same, total = same + int(equal.sum()), total + equal.numel()
            classes |= set(first.pred_sem_seg.data.unique().tolist())
        else:
            found = shared_boxes(first.pred_instances, second.pred_instances)
            most = max(len(first.pred_instances), len(second.pred_instances))
            same, total = same + found, total + most
            classes |= set(first.pred_instances.labels.unique().tolist())
    unit = 'pixels' if 'pred_sem_seg' in first else 'boxes'
    return f'{100 * same / total:.2f} % of {total} {unit} of {len(classes)} classes'


@torch.no_grad()
def predict(model: nn.Module, path: Path, shape: Sequence[int]) -> BaseDataElement:
    """Of the upper left part of a picture, in the size that the engine takes."""
    image = mmcv.imread(path)
    height, width = shape
    image = mmcv.imrescale(image, (10_000, max(height, width)))[:height, :width]
    sample_type = SegDataSample if 'Seg' in type(model.data_preprocessor).__name__ else DetDataSample
    sizes = dict(img_shape=image.shape[:2], ori_shape=image.shape[:2], pad_shape=image.shape[:2])
    sample = sample_type(metainfo=dict(scale_factor=(1., 1.), img_id=0, **sizes))
    inputs = torch.from_numpy(image.copy()).permute(2, 0, 1)
    prediction, = model.test_step(dict(inputs=[inputs], data_samples=[sample]))
    return prediction


def shared_boxes(first: BaseDataElement, second: BaseDataElement) -> int:
    """How many boxes of the first are among the second's, with their label and score."""
    overlaps = bbox_overlaps(first.bboxes, second.bboxes)
    scores = (first.scores[:, None] - second.scores[None]).abs()
    labels = first.labels[:, None] == second.labels[None]
    same = (overlaps > SAME_BOX['iou']) & (scores < SAME_BOX['score']) & labels
    return int(same.any(1).sum())


def replace_backbone(holder: dict) -> None:
    """Put RepVGG in the place of a backbone, and its channels into what follows."""
    widths, strides = outputs_of(holder.backbone)
    stages = RepVGG(ARCH)
    own_strides, indices = stage_strides(strides)
    channels = [stages.out_channels[index] for index in indices]
    first = holder.backbone.get('in_channels', 3)
    holder['backbone'] = dict(
        type='repvgg_mm.RepVGG', arch=ARCH, in_channels=first, strides=own_strides, out_indices=indices)

    neck = holder.get('neck')
    if neck:
        set_channels(neck[0] if isinstance(neck, list) else neck, widths, channels)
        if 'SSD' in str(holder.get('bbox_head', {}).get('type')):
            holder.bbox_head.in_channels = neck.out_channels
        return
    for key, part in holder.items():
        if key.endswith('head') and part:
            for head in part if isinstance(part, list) else [part]:
                set_channels(head, widths, channels)


def outputs_of(backbone: dict) -> tuple[list[int], list[int]]:
    """Channels and strides of the feature maps of a backbone, by running it."""
    settings = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
    for part in config_dicts(settings):
        if 'SyncBN' in str(part.get('type')):
            part['type'] = 'BN'
    model = MODELS.build(settings)
    model.eval()
    image = torch.zeros(1, backbone.get('in_channels', 3), 256, 256)
    with torch.no_grad():
        maps = model(image)
    maps = [maps] if isinstance(maps, torch.Tensor) else list(maps)
    return [one.shape[1] for one in maps], [256 // one.shape[-1] for one in maps]


def stage_strides(strides: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides of RepVGG's stages, and which of them to give, so that the maps have these strides where they can."""
    if len(strides) == 4 and strides[0] == 4:
        steps = [2]
        for before, stride in pairwise(strides):
            steps.append(max(1, stride // before))
        return tuple(steps), (0, 1, 2, 3)
    last = 8 if max(strides) <= 8 else 16 if max(strides) == 16 else 32
    steps = {8: (2, 2, 1, 1), 16: (2, 2, 2, 1), 32: (2, 2, 2, 2)}[last]
    count = min(len(strides), 4)
    return steps, tuple(range(4 - count, 4))


def set_channels(part: dict, widths: list[int], channels: list[int]) -> None:
    """Replace the channels of the old backbone in a neck or head by those of RepVGG, by position, else by value."""
    by_value = dict(zip(widths, channels))
    if 'kernel_generate_head' in part:  # of K-Net
        part = part['kernel_generate_head']
    found, index = part.get('in_channels'), part.get('in_index')
    if isinstance(found, (list, tuple)):
        if isinstance(index, (list, tuple)):
            part['in_channels'] = [channels[one] for one in index]
        elif len(found) == len(channels):
            part['in_channels'] = type(found)(channels)
        else:
            part['in_channels'] = [by_value.get(one, one) for one in found]
    elif isinstance(found, int):
        part['in_channels'] = channels[index if isinstance(index, int) else -1]
    if part.get('type') == 'SSDNeck':  # its first maps are the backbone's own
        part['out_channels'] = (*channels, *part['out_channels'][len(channels):])
        part['in_channels'] = tuple(channels)
    for key in ('c1_in_channels', 'low_level_channels', 'high_channels', 'low_channels'):
        if part.get(key) in by_value:
            part[key] = by_value[part[key]]


def randomise_norms(model: nn.Module) -> nn.Module:
    """Statistics, weight and bias of every BatchNorm away from 0, 1, 1, 0, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
                norm.running_var.uniform_(0.05, 2, generator=generator)
                if norm.weight is not None:
                    norm.weight.uniform_(0.3, 1.3, generator=generator)
                    norm.bias.uniform_(-0.5, 0.5, generator=generator)
    return model


if __name__ == '__main__':
    main()
