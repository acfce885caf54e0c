"""A trained checkpoint's way to its deploy form: load, convert, prove, report, write."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..convert.compare import compare_models
from ..convert.foreign import FusedBlock
from ..convert.weights import load_strictly, state_dict_of
from ..convert.whole import whole_model_convert
from ..errors import UserError
from ..files.atomic import atomic_path, sha256_of
from ..files.checkpoint import read_checkpoint, write_checkpoint
from ..layouts import form_of
from ..openmmlab.model import arch_of_config, build_model, check_size, replace_sync_bn, shape_of_config
from ..version import __version__
from .checkpoint import dataset_meta_of
from .config import deploy_config, use_training_form

TOLERANCE = 1e-5  # worst relative error in float32; right formulas stay below 2e-6
WEIGHT_SUFFIXES = {'.pth', '.safetensors'}


@dataclass
class Conversion:
    """A model in both forms, with the proof that they compute the same."""

    trained: nn.Module
    deploy: nn.Module
    errors: dict[str, float]
    inputs: Tensor
    config: Config
    meta: dict


def convert_checkpoint(
    cfg: Config, checkpoint_path: str | PathLike, shape: Sequence[int] | None = None, *, trust: bool = False
) -> Conversion:
    """Load a checkpoint completely, convert its model and compare both forms on a random image.

    Args:
        shape: height and width of that image; by default the size of the config's data preprocessor,
            else 512x512.

    Raises:
        UserError: the checkpoint does not fit the config or is in deploy form, there is no RepVGG
            block, a block cannot be fused, or an output differs by more than 1e-5 relative.
    """
    checkpoint = read_checkpoint(checkpoint_path, trust=trust)
    if form_of(state_dict_of(checkpoint, str(checkpoint_path))) == 'deploy':
        raise UserError(f'Converting starts from the training form, and {checkpoint_path} is in deploy form already. '
                        'Use it as it is, with the deploy.py beside it.')
    use_training_form(cfg)  # a deploy.py also describes it
    arch = arch_of_config(cfg)
    deploy_cfg = deploy_config(cfg)
    replace_sync_bn(cfg)  # the same weights, and it runs on a CPU
    trained = build_model(cfg).eval()
    load_strictly(trained, checkpoint, str(checkpoint_path))
    deploy = whole_model_convert(trained)
    if any(isinstance(module, FusedBlock) for module in deploy.modules()):
        deploy_cfg.model = dict(type='repvgg_mm.deploy_form', model=deploy_cfg.model)

    height, width = shape or shape_of_config(cfg)
    check_size((height, width))
    inputs = torch.randn(1, in_channels(trained), height, width, generator=torch.Generator().manual_seed(0))
    errors = compare(trained, deploy, inputs)
    worst = max(errors, key=errors.get)
    if not errors[worst] <= TOLERANCE:
        raise UserError(
            f'A deploy form must agree with the training form to {TOLERANCE:g} relative, and {worst} differs by '
            f'{errors[worst]:.1e} on an input of {height}x{width}. Nothing was written: '
            + cause_of_difference(trained, inputs))
    meta = dict(
        form='deploy',
        arch=arch,
        source=Path(checkpoint_path).name,
        source_sha256=sha256_of(local_path(checkpoint_path)),
        worst_relative_error=errors[worst],
        versions=dict(repvgg_mm=__version__, torch=str(torch.__version__), mmengine=mmengine.__version__))
    meta |= dataset_meta_of(checkpoint)
    return Conversion(trained, deploy, errors, inputs, deploy_cfg, meta)


def cause_of_difference(trained: nn.Module, inputs: Tensor) -> str:
    """Float32's rounding or the fusing, which a comparison in float64 tells apart; and the next step."""
    exact = copy.deepcopy(trained).double()
    try:
        error = max(compare_models(exact, whole_model_convert(exact), inputs.double()).values())
    except RuntimeError:
        return 'the model does not run in float64, which would tell rounding from a fault. Use a later checkpoint.'
    if error <= TOLERANCE / 10:
        return (f'in float64 both forms agree to {error:.1e}, so the blocks are fused right and this network amplifies '
                'the rounding of float32, as in the first steps at a high learning rate. Use a later checkpoint, or '
                'write this one without the comparison: whole_model_convert(model, save_path=...) in Python.')
    return (f'in float64 they differ by {error:.1e}, which is no rounding. Look for NaN, infinite or huge values in '
            'the checkpoint, and report a fault of the fusing if there are none.')


def conversion_of(
    cfg: Config, checkpoint_path: str | PathLike, shape: Sequence[int] | None = None, *, trust: bool = False
) -> Conversion | None:
    """`convert_checkpoint`, or None for a checkpoint in deploy form."""
    checkpoint = read_checkpoint(checkpoint_path, trust=trust)
    if form_of(state_dict_of(checkpoint, str(checkpoint_path))) == 'deploy':
        return None
    return convert_checkpoint(cfg, checkpoint_path, shape, trust=trust)


def compare(trained: nn.Module, deploy: nn.Module, inputs: Tensor) -> dict[str, float]:
    """`compare_models`, with a size that the model cannot take reported as a UserError."""
    try:
        return compare_models(trained, deploy, inputs)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'Both forms are compared on an input of {tuple(inputs.shape[2:])}, and the model cannot take '
                        f'it: {str(error).splitlines()[0]}. Choose another with --shape H W.') from None


def write_deploy(conversion: Conversion, folder: Path, suffix: str = 'pth', stem: str = 'deploy') -> Path:
    """Write `STEM.SUFFIX` and `STEM.py`; either both files are the new ones or nothing has changed.

    Returns the path of the weights.
    """
    existed = folder.exists()
    path = folder / f'{stem}.{suffix}'
    try:
        with atomic_path(folder / f'{stem}.py') as config:
            config.write_text(conversion.config.pretty_text)
            write_checkpoint(path, dict(meta=conversion.meta, state_dict=conversion.deploy.state_dict()))
        for other in WEIGHT_SUFFIXES - {f'.{suffix}'}:
            (folder / f'{stem}{other}').unlink(missing_ok=True)  # of an earlier conversion
        return path
    except BaseException:
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def in_channels(model: nn.Module) -> int:
    """Of the first convolution larger than 1x1: those of a squeeze-and-excitation may be registered before it."""
    return next(module for module in model.modules()
                if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)).in_channels
