"""From a trained whole model to its deploy form: a copy in which every RepVGG block is one convolution."""

from __future__ import annotations

import copy
import warnings
from os import PathLike

from torch import nn

from ..block import check_blocks, fuse_blocks
from ..environment import is_sharded
from ..errors import UserError
from ..files.checkpoint import write_checkpoint
from .blocks import fusible_or_fused, norms_left, unknown_switches
from .foreign import replace_foreign_blocks
from .weights import load_strictly


def whole_model_convert(
    train_model: nn.Module,
    deploy_model: nn.Module | None = None,
    save_path: str | PathLike | None = None,
    *,
    inplace: bool = False,
) -> nn.Module:
    """Fuse every RepVGG block inside a segmentor, a detector, a wrapper, a backbone or a block.

    Blocks of mmpretrain, timm, mmyolo, mmpose, transformers and ultralytics and those registered with `fusible` are
    fused too; each is replaced by a `FusedBlock`. Other blocks with a method that fuses them (`fuse`,
    `reparameterize`, `switch_to_deploy`, ...) are replaced by what it makes, if that was seen to compute the same.
    What is left is named in a warning.

    Args:
        train_model: the trained model; only changed with `inplace`. Its training mode does not matter.
        deploy_model: a model built with deploy=True that receives all weights, in its own dtype and
            on its own device; without one a copy of `train_model` is converted.
        save_path: where to write the deploy form as a checkpoint with `meta` and `state_dict`.
        inplace: convert `train_model` itself, holding one fused kernel at a time beside its branches (blocks of
            other libraries: all of theirs). A block of another library that is `train_model` itself is replaced.

    Returns:
        The deploy form (`deploy_model` or `train_model` itself if those were asked for), in eval
        mode. Converting it again changes nothing.

    Raises:
        UserError: there is no RepVGG block, a block cannot be fused, its parameters are sharded, two targets are
            given, or `deploy_model` does not fit. No model is then changed and nothing is written.
    """
    _check_model(train_model)
    if deploy_model is not None:
        _check_model(deploy_model)
    if inplace and deploy_model is not None:
        raise UserError(
            'The deploy form goes into train_model (inplace=True) or into deploy_model, and both '
            'were given. Leave one of them out.')

    converted = train_model if inplace else copy.deepcopy(train_model)
    check_blocks(converted)  # before the first of them is changed
    converted, _ = replace_foreign_blocks(converted)
    if not fusible_or_fused(converted):  # then nothing was changed
        raise UserError(
            f'Converting fuses RepVGG blocks, and {type(train_model).__name__} contains none, nor any other block '
            "that is known or fuses itself. Build it with backbone=dict(type='RepVGG', ...) and convert the trained "
            'model, or register its blocks with repvgg_mm.fusible.')
    fuse_blocks(converted)
    _warn_of_unknown(converted)

    if deploy_model is not None:
        load_strictly(deploy_model, converted.state_dict(), 'the converted model')
        converted = deploy_model
    converted.eval()

    if save_path is not None:
        write_checkpoint(save_path, dict(meta=dict(form='deploy'), state_dict=converted.state_dict()))
    return converted


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(
            f'A model is converted, and {model!r} is a {type(model).__name__}. Load a file into its '
            'model first, or use tools/convert_whole.py; a file to write goes into save_path.')

    sharded = [name or 'the model' for name, module in model.named_modules() if is_sharded(module)]
    if sharded:
        raise UserError(
            f'Fusing needs whole parameters, and those of {", ".join(sharded[:3])} are sharded over several processes. '
            'Build the model again without fully_shard and load get_model_state_dict(model, '
            'options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict into it.')


def _warn_of_unknown(model: nn.Module) -> None:
    unknown = unknown_switches(model)
    if unknown:
        warnings.warn(
            f'Left as they are, because nothing says how to fuse them: {", ".join(unknown)}. Register their '
            'type with repvgg_mm.fusible (docs/convert.md, section "Blocks of other libraries").', stacklevel=3)

    left = norms_left(model)
    if left:
        held = ', '.join(f'{count} in {name}' for name, count in left.items())
        warnings.warn(
            f'BatchNorms that are left beside the fused blocks, no part of one: {held}. They compute what they '
            'did; exporting folds those behind a convolution.', stacklevel=3)
