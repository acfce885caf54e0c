"""From a config and a checkpoint or engine to a function of an image: the test pipeline, then the deploy form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from ..convert.blocks import fusible_or_fused
from ..convert.whole import whole_model_convert
from ..deploy.checkpoint import Checkpoint, load_model
from ..deploy.config import deploy_config
from ..engine.engine import Engine
from ..engine.evaluate import open_weights
from ..engine.model import EngineModel
from ..errors import UnusableFile, UserError, reason
from ..openmmlab.config import config_dicts, kind_of
from ..openmmlab.data import innermost_dataset
from ..openmmlab.device import usable_device

LOADERS = ('LoadImageFromFile', 'LoadImageFromNDArray')


@dataclass(frozen=True)
class ImageModel:
    """Called with a BGR image (H, W, 3) of uint8, returns its data sample on the CPU; see `load_image_model`."""

    load: Compose                                       # of the test pipeline: reads a file
    prepare: Compose                                    # of the test pipeline: the steps after that
    test_step: Callable[[dict], list[BaseDataElement]]  # batch -> data samples
    classes: list[str]
    palette: Sequence | None                            # RGB

    def read(self, path: Path) -> np.ndarray:
        """The image as the toolbox's test reads it. Raises UnusableFile if it cannot be decoded."""
        try:
            return self.load(dict(img_path=str(path)))['img']
        except Exception as error:  # what decoders raise depends on the damage
            raise UnusableFile(
                f'An image is a file that OpenCV can decode, and {path} is not ({reason(error)}). It is '
                'damaged, incomplete or of another kind: copy it again or convert it to .png.') from None

    @torch.no_grad()
    def __call__(self, image: np.ndarray, name: str | PathLike) -> BaseDataElement:
        """Raises UnusableFile, which calls the image `name`, if it is no such array or the model cannot take it."""
        _check_image(image, name)
        height, width = image.shape[:2]
        loaded = dict(
            img=image, img_path=str(name), img_id=0, img_shape=(height, width), ori_shape=(height, width))
        try:
            batch = pseudo_collate([self.prepare(loaded)])
            sample, = self.test_step(batch)
        except UserError as error:  # an engine of another size
            raise UnusableFile(f'{name}: {error}') from None
        except (RuntimeError, ValueError, cv2.error) as error:
            raise UnusableFile(
                f'An image must have a size that the model can take, and {name} of {height}x{width} '
                f'pixels has not ({reason(error)}). Resize it, or let the test '
                'pipeline of the config do so.') from None
        return sample.cpu()


def load_image_model(
    cfg: Config, weights: str | PathLike, device: str | None = None, *, trust: bool = False
) -> ImageModel:
    """The function of an image that `cfg` and `weights` describe.

    Its predictions are those of the toolbox's test on that image; each image is predicted on its own.

    Args:
        weights: a checkpoint in either form, or an engine (`.onnx`, `.xml`, `.plan`).
        device: of a checkpoint a GPU by default if there is one; of an engine as `Engine` takes it.

    Raises:
        UserError: the config has no test pipeline, the weights do not fit, or there is no such device.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    load, prepare = _pipeline(cfg)

    opened = open_weights(weights, device=device, trust=trust)
    if isinstance(opened, Engine):
        model = EngineModel(cfg, opened).eval()
        known = dict(classes=opened.description.classes, palette=opened.description.palette)
    else:
        model = _deploy_model(cfg, opened, device)
        known = opened.dataset_meta

    classes, palette = _classes_and_palette(cfg, known)
    return ImageModel(load, prepare, model.test_step, classes, palette)


def _deploy_model(cfg: Config, checkpoint: Checkpoint, device: str | None) -> nn.Module:
    place = usable_device(device)
    model = load_model(deploy_config(cfg), checkpoint)  # training-form weights are fused while they are loaded
    if fusible_or_fused(model):
        whole_model_convert(model, inplace=True)  # blocks of other libraries
    model.to(place)
    model.eval()
    return model


def _check_image(image: object, name: str | PathLike) -> None:
    """UnusableFile unless it is an array (H, W, 3) of uint8."""
    if not isinstance(image, np.ndarray):
        got = type(image).__name__
    elif image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    else:
        got = f'{image.dtype} of {image.shape}'
    raise UnusableFile(
        f'An image is a BGR array (H, W, 3) of uint8, and {name} is {got}. Convert it, for '
        'example with cv2.cvtColor or .astype.')


def _pipeline(cfg: Config) -> tuple[Compose, Compose]:
    """The step of the test pipeline that reads an image, and those after it without any that reads annotations."""
    steps = _test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline') or []
    kinds = [kind_of(step) for step in steps]
    if not steps or kinds[0] not in LOADERS:
        raise UserError(
            'Images are prepared by the test pipeline of the config, which starts with LoadImageFromFile, '
            f'and this one has {", ".join(kinds) or "none"}. Give test_dataloader.dataset.pipeline or '
            'test_pipeline in the config.')

    loader = {**steps[0], 'type': 'LoadImageFromFile'}
    others = []
    for step, kind in zip(steps[1:], kinds[1:]):
        reads_annotations = kind.startswith('Load') and 'Annotation' in kind
        if not reads_annotations:
            others.append(step)
    return Compose([loader]), Compose(others)


def _test_dataset(cfg: Config) -> Mapping:
    """The innermost test dataset of a config, of several the first."""
    loader = cfg.get('test_dataloader') or {}
    dataset = innermost_dataset(loader.get('dataset') or {})
    while 'datasets' in dataset:
        dataset = innermost_dataset(dataset['datasets'][0])
    return dataset


def _classes_and_palette(cfg: Config, known: Mapping) -> tuple[list[str], Sequence | None]:
    """Of the test dataset, else `known` of the weights, else numbers: the first that fits the model."""
    sizes = set()
    for part in config_dicts(cfg.model):
        if isinstance(part.get('num_classes'), int):
            sizes.add(part.num_classes)

    for meta in (_dataset_meta(cfg), known):
        meta = {key.lower(): value for key, value in meta.items()}
        classes = meta.get('classes')
        if classes is not None and (not sizes or len(classes) in sizes):
            palette = meta.get('palette')
            return list(classes), None if isinstance(palette, str) else palette

    count = max(sizes, default=1)
    return [f'class {number}' for number in range(count)], None


def _dataset_meta(cfg: Config) -> Mapping:
    """`metainfo` of the test dataset, whose files need not be there."""
    dataset = _test_dataset(cfg)
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:  # the default scope, as when it is built
            kind = registry.get(kind)
    if kind is None:
        return {}
    return kind._load_metainfo(dataset.get('metainfo'))
