"""A trained checkpoint's way to its deploy form: load, convert, prove, write."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..convert.compare import TOLERANCE, compare_models
from ..convert.foreign import FusedBlock
from ..convert.whole import whole_model_convert
from ..errors import UserError, reason
from ..files.atomic import atomic_path
from ..files.checkpoint import write_checkpoint
from ..openmmlab.config import copy_of
from ..openmmlab.model import arch_of_config, check_size, replace_sync_bn, shape_of_config
from ..version import __version__
from .checkpoint import PAIR, Checkpoint, load_model
from .config import DEPLOY_FORM, deploy_config, use_training_form

WEIGHT_SUFFIXES = {'.pth', '.safetensors'}


@dataclass(frozen=True)
class Conversion:
    """A model in both forms, with the proof that they compute the same.

    `errors` are the relative errors of `compare_models` on `inputs` (1, C, H, W); `config` and `meta` go with
    the deploy form.
    """

    trained: nn.Module
    deploy: nn.Module
    errors: dict[str, float]
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
            block, a block cannot be fused, or an output differs by more than 1e-5 relative.
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
    if any(isinstance(module, FusedBlock) for module in deploy.modules()):
        deploy_cfg.model = dict(type=DEPLOY_FORM, model=deploy_cfg.model)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, in_channels(trained), *shape, generator=generator)
    errors = _prove(trained, deploy, inputs)

    described = checkpoint.sha256 + deploy_cfg.pretty_text
    deploy_cfg[PAIR] = hashlib.sha256(described.encode()).hexdigest()[:16]

    versions = dict(repvgg_mm=__version__, torch=str(torch.__version__), mmengine=mmengine.__version__)
    meta = dict(
        form='deploy',
        arch=arch_of_config(training_cfg),
        source=checkpoint.name,
        source_sha256=checkpoint.sha256,
        worst_relative_error=max(errors.values()),
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


def _prove(trained: nn.Module, deploy: nn.Module, inputs: Tensor) -> dict[str, float]:
    """`compare_models`; UserError if the model cannot take the input, or an output differs too much."""
    height, width = inputs.shape[2:]
    try:
        errors = compare_models(trained, deploy, inputs)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'Both forms are compared on an input of {(height, width)}, and the model cannot take '
            f'it: {reason(error)}. Choose another with --shape H W.') from None

    worst = max(errors, key=errors.get)
    if not errors[worst] <= TOLERANCE:
        raise UserError(
            f'A deploy form must agree with the training form to {TOLERANCE:g} relative, and {worst} differs by '
            f'{errors[worst]:.1e} on an input of {height}x{width}. Nothing was written: '
            + _cause_of_difference(trained, inputs))
    return errors


def _cause_of_difference(trained: nn.Module, inputs: Tensor) -> str:
    """Float32's rounding or the fusing, which a comparison in float64 tells apart; and the next step."""
    exact = copy.deepcopy(trained).double()
    try:
        errors = compare_models(exact, whole_model_convert(exact), inputs.double())
    except RuntimeError:
        return 'the model does not run in float64, which would tell rounding from a fault. Use a later checkpoint.'

    error = max(errors.values())
    if error <= TOLERANCE / 10:
        return (
            f'in float64 both forms agree to {error:.1e}, so the blocks are fused right and this network amplifies '
            'the rounding of float32, as in the first steps at a high learning rate. Use a later checkpoint, or '
            'write this one without the comparison: whole_model_convert(model, save_path=...) in Python.')
    return (
        f'in float64 they differ by {error:.1e}, which is no rounding. Look for NaN, infinite or huge values in '
        'the checkpoint, and report a fault of the fusing if there are none.')
