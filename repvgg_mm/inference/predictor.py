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

from ..convert.blocks import fusible_or_fused
from ..convert.weights import load_strictly
from ..convert.whole import whole_model_convert
from ..deploy.config import deploy_config
from ..engine.engine import Engine, is_engine
from ..engine.model import EngineModel
from ..errors import UnusableFile, UserError
from ..files.checkpoint import read_checkpoint
from ..openmmlab.config import config_dicts
from ..openmmlab.device import usable_device
from ..openmmlab.model import build_model

LOADERS = ('LoadImageFromFile', 'LoadImageFromNDArray')


@dataclass
class Predictor:
    """Called with a BGR image (H, W, 3) of uint8, returns its data sample on the CPU; see `predictor`."""

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
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnusableFile(f'An image is a file that OpenCV can decode, and {path} is not ({reason}). It is '
                               'damaged, incomplete or of another kind: copy it again or convert it to .png.') from None

    @torch.no_grad()
    def __call__(self, image: np.ndarray, name: str | PathLike) -> BaseDataElement:
        """Raises UnusableFile, which calls the image `name`, if it is no such array or the model cannot take it."""
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
                and image.size):
            got = f'{image.dtype} of {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
            raise UnusableFile(f'An image is a BGR array (H, W, 3) of uint8, and {name} is {got}. Convert it, for '
                               'example with cv2.cvtColor or .astype.')
        height, width = image.shape[:2]
        try:
            data = self.prepare(dict(img=image, img_path=str(name), img_id=0, img_shape=(height, width),
                                     ori_shape=(height, width)))
            return self.test_step(pseudo_collate([data]))[0].cpu()
        except UserError as error:  # an engine of another size
            raise UnusableFile(f'{name}: {error}') from None
        except (RuntimeError, ValueError, cv2.error) as error:
            raise UnusableFile(f'An image must have a size that the model can take, and {name} of {height}x{width} '
                               f'pixels has not ({str(error).splitlines()[0][:200]}). Resize it, or let the test '
                               'pipeline of the config do so.') from None


def predictor(
    cfg: Config, weights: str | PathLike, device: str | None = None, *, trust: bool = False
) -> Predictor:
    """The function of an image that `cfg` and `weights` describe.

    Its predictions are those of the toolbox's test on that image; each image is predicted on its own.

    Args:
        weights: a checkpoint in either form, or an engine (`.onnx`, `.xml`), which runs on the CPU.
        device: a GPU by default if there is one.

    Raises:
        UserError: the config has no test pipeline, the weights do not fit, or there is no such device.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    load, prepare = _pipeline(cfg)
    if is_engine(weights):
        test_step, meta = _engine(cfg, weights, device)
    else:
        test_step, meta = _model(cfg, weights, usable_device(device), trust)
    return Predictor(load, prepare, test_step, *_names(cfg, meta))


def _model(cfg: Config, weights: str | PathLike, device: torch.device, trust: bool) -> tuple[Callable, Mapping]:
    checkpoint = read_checkpoint(weights, trust=trust)
    model = build_model(deploy_config(cfg))  # training-form weights are fused while they are loaded
    load_strictly(model, checkpoint, str(weights))
    if fusible_or_fused(model):
        whole_model_convert(model, inplace=True)  # blocks of other libraries
    return model.to(device).eval().test_step, checkpoint.get('meta') or {}


def _engine(cfg: Config, path: str | PathLike, device: str | None) -> tuple[Callable, Mapping]:
    if device not in (None, 'cpu'):
        raise UserError(f'Engines run on the CPU, and --device {device} was asked for. Leave it out, or give the '
                        'checkpoint instead of the engine.')
    engine = Engine(path, threads=torch.get_num_threads())
    return EngineModel(cfg, engine).eval().test_step, dict(
        dataset_meta={key: engine.meta.get(key) for key in ('classes', 'palette')})


def _pipeline(cfg: Config) -> tuple[Compose, Compose]:
    """The step of the test pipeline that reads an image, and those after it without any that reads annotations."""
    steps = _test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline') or []
    kinds = [_kind(step) for step in steps]
    if not steps or kinds[0] not in LOADERS:
        raise UserError('Images are prepared by the test pipeline of the config, which starts with LoadImageFromFile, '
                        f'and this one has {", ".join(kinds) or "none"}. Give test_dataloader.dataset.pipeline or '
                        'test_pipeline in the config.')
    loader = {**steps[0], 'type': 'LoadImageFromFile'}
    rest = [step for step, kind in zip(steps, kinds) if not (kind.startswith('Load') and 'Annotation' in kind)]
    return Compose([loader]), Compose(rest[1:])


def _test_dataset(cfg: Config) -> Mapping:
    """The innermost test dataset of a config, without RepeatDataset and its like."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


def _kind(step: Mapping) -> str:
    kind = step['type']
    return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1]


def _names(cfg: Config, meta: Mapping) -> tuple[list[str], Sequence | None]:
    """Classes and palette of the test dataset, else of the checkpoint, else numbers: the first that fits the model."""
    sizes = {part.num_classes for part in config_dicts(cfg.model) if isinstance(part.get('num_classes'), int)}
    for known in (_dataset_meta(cfg), meta.get('dataset_meta') or {}):
        known = {key.lower(): value for key, value in known.items()}
        if known.get('classes') is not None and (not sizes or len(known['classes']) in sizes):
            palette = known.get('palette')
            return list(known['classes']), None if isinstance(palette, str) else palette
    return [f'class {number}' for number in range(max(sizes, default=1))], None


def _dataset_meta(cfg: Config) -> Mapping:
    """`metainfo` of the test dataset, whose files need not be there."""
    dataset = _test_dataset(cfg)
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:  # the default scope, as when it is built
            kind = registry.get(kind)
    return {} if kind is None else kind._load_metainfo(dataset.get('metainfo'))
