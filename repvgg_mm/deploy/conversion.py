"""A trained checkpoint's way to its deploy form: load, convert, prove, write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..convert.blocks import is_fused_foreign
from ..convert.compare import OutputErrors
from ..convert.whole import whole_model_convert
from ..errors import UserError
from ..files.atomic import atomic_path
from ..files.checkpoint import write_checkpoint
from ..openmmlab.config import copy_of
from ..openmmlab.model import arch_of_config, check_size, replace_sync_bn, shape_of_config
from ..version import __version__
from .checkpoint import PAIR, Checkpoint, load_model
from .config import DEPLOY_FORM, deploy_config, use_training_form
from .proof import prove

WEIGHT_SUFFIXES = {'.pth', '.safetensors'}


@dataclass(frozen=True)
class Conversion:
    """A model in both forms, with the proof that they compute the same.

    `errors` are those of `prove` on `inputs` (1, C, H, W); `config` and `meta` go with the deploy form.
    """

    trained: nn.Module
    deploy: nn.Module
    errors: OutputErrors
    inputs: Tensor
    config: Config
    meta: dict


def convert_checkpoint(cfg: Config, checkpoint: Checkpoint, shape: Sequence[int] | None = None) -> Conversion:
    """Load a checkpoint completely, convert its model and compare both forms on a random image.

    Args:
        cfg: of the model, in either form; it is not changed.
        shape: height and width of that image; by default the size of the config's data preprocessor,
            else 512x512.

    Raises:
        UserError: the checkpoint does not fit the config or is in deploy form, there is no RepVGG
            block, a block cannot be fused, or both forms cannot be proven equal.
    """
    if checkpoint.form == 'deploy':
        raise UserError(
            f'Converting starts from the training form, and {checkpoint.source} is in deploy form already. '
            'Use it as it is, with the deploy.py beside it.')
    shape = tuple(shape or shape_of_config(cfg))
    check_size(shape)

    training_cfg = copy_of(cfg)
    use_training_form(training_cfg)  # a deploy.py also describes it
    deploy_cfg = deploy_config(training_cfg)
    replace_sync_bn(training_cfg)  # the same weights, and it runs on a CPU

    trained = load_model(training_cfg, checkpoint)
    deploy = whole_model_convert(trained)
    if any(is_fused_foreign(module) for module in deploy.modules()):
        deploy_cfg.model = dict(type=DEPLOY_FORM, model=deploy_cfg.model)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, in_channels(trained), *shape, generator=generator)
    errors = prove(trained, deploy, inputs)

    described = checkpoint.sha256 + deploy_cfg.pretty_text
    deploy_cfg[PAIR] = hashlib.sha256(described.encode()).hexdigest()[:16]

    versions = dict(repvgg_mm=__version__, torch=str(torch.__version__), mmengine=mmengine.__version__)
    meta = dict(
        form='deploy',
        arch=arch_of_config(training_cfg),
        source=checkpoint.name,
        source_sha256=checkpoint.sha256,
        worst_relative_error=errors.worst,
        compared=' '.join([f'{errors.way}.', *errors.notes]),
        not_compared=list(errors.not_run),
        versions=versions)
    meta[PAIR] = deploy_cfg[PAIR]
    if checkpoint.dataset_meta:
        meta['dataset_meta'] = checkpoint.dataset_meta
    return Conversion(trained, deploy, errors, inputs, deploy_cfg, meta)


def write_deploy(conversion: Conversion, folder: Path, suffix: str = 'pth', stem: str = 'deploy') -> Path:
    """Write `STEM.SUFFIX` and `STEM.py`; either both files are the new ones or nothing has changed.

    A kill between the two can leave one of them new; `Checkpoint.load_into` refuses such a pair.

    Returns the path of the weights.
    """
    existed = folder.exists()
    path = folder / f'{stem}.{suffix}'
    checkpoint = dict(meta=conversion.meta, state_dict=conversion.deploy.state_dict())
    try:
        with atomic_path(folder / f'{stem}.py') as config:
            config.write_text(conversion.config.pretty_text, encoding='utf-8')
            write_checkpoint(path, checkpoint)
    except BaseException:
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise

    for other in WEIGHT_SUFFIXES - {path.suffix}:
        path.with_suffix(other).unlink(missing_ok=True)  # of an earlier conversion
    return path


def in_channels(model: nn.Module) -> int:
    """Of the first convolution larger than 1x1: those of a squeeze-and-excitation may be registered before it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            return module.in_channels
    raise UserError(
        f'The images of a model have the channels of its first convolution larger than 1x1, and '
        f'{type(model).__name__} has none. Give the config of a segmentor or detector.')
