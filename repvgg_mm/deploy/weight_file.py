"""A file of a bare backbone or classifier on its way to another layout or form; no config is needed."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..archs import Arch, get_arch, name_of
from ..backbone import RepVGG
from ..convert.compare import TOLERANCE, compare_models
from ..errors import UserError
from ..files.checkpoint import read_checkpoint
from ..layouts import CLASSIFIERS, form_of, from_native, to_native
from ..pretrained import fuse_state_dict, listed, unwrap

TARGETS = ('native', 'official', 'timm')
EPS = 1e-5  # of every published RepVGG's BatchNorms
_CLASSIFIER_NAMES = tuple(f'{module}.{part}' for module in set(CLASSIFIERS.values()) for part in ('weight', 'bias'))


class ConvertedFile(NamedTuple):
    """What to write, the worst relative error of each feature map, and one line about what was done."""

    checkpoint: dict
    errors: dict[str, float]
    summary: str


def convert_weight_file(
    source: str | PathLike, arch: str, target: str = 'native', *, deploy: bool = False, trust: bool = False
) -> ConvertedFile:
    """Rename the tensors of a file of any layout and form, and fuse them in float64 with `deploy`.

    The result is loaded into a new RepVGG and compared with the source, feature map by feature map
    in float64. A classifier is kept under its name in the target layout. 'native' is mmpretrain's
    form of a file, `state_dict` with the prefix `backbone.`; the other two are flat dicts.

    Raises:
        UserError: the file cannot be read, does not cover `arch`, is in deploy form though the training
            form is wanted, or the result differs by more than 1e-5 relative.
    """
    shape = get_arch(arch)
    layout = _layout_of(target, shape)
    weights = unwrap(read_checkpoint(source, trust=trust))
    found = to_native(weights)
    form, new_form = form_of(found.tensors), 'deploy' if deploy else 'training'
    if form == 'deploy' and not deploy:
        raise UserError(
            f'The training form has branches, and {source} is in deploy form: they were fused and cannot '
            'be told apart again. Add --deploy, or give the file that it was made from.')

    model = RepVGG(arch, deploy=form == 'deploy').double().eval()
    model.load_state_dict(weights)
    tensors = {name: found.tensors[name] for name in model.state_dict() if name in found.tensors}
    if deploy and form == 'training':
        tensors = _fused_in_float64(tensors)
    renamed = from_native(tensors, layout)
    errors = _compare(model, renamed, arch, deploy, source)

    classifier, left_out = {}, []
    for name in found.others:
        if name.endswith(_CLASSIFIER_NAMES):
            part = name.rpartition('.')[2]
            classifier[f'{CLASSIFIERS[layout]}.{part}'] = weights[name]
        else:
            left_out.append(name)

    kept = 'kept' if classifier else 'not there'
    summary = (
        f'{name_of(shape)}, {len(tensors)} tensors: {found.layout} layout, {form} form, to {layout} layout, '
        f'{new_form} form; classifier {kept}; {listed("left out", left_out)}.')

    if target != 'native':
        return ConvertedFile(renamed | classifier, errors, summary)
    meta = dict(form=new_form, arch=name_of(shape), source=Path(source).name)
    backbone = {f'backbone.{name}': tensor for name, tensor in renamed.items()}
    return ConvertedFile(dict(meta=meta, state_dict=backbone | classifier), errors, summary)


def _layout_of(target: str, shape: Arch) -> str:
    """The names to write; UserError if that library has no such network."""
    if target == 'timm' and shape.se_after_act:
        raise UserError(
            f'timm has no squeeze-and-excitation after the activation, which {name_of(shape)} needs. '
            'Choose --to native or --to official.')
    if target == 'official' and shape.se_after_act:
        return 'RepVGGplus'
    return target


def _fused_in_float64(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    dtype = tensors['stem.branch_3x3.conv.weight'].dtype
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    fused = fuse_state_dict(exact, EPS)
    return {name: tensor.to(dtype) for name, tensor in fused.items()}


def _compare(model: RepVGG, renamed: dict, arch: str, deploy: bool, source: object) -> dict[str, float]:
    """The errors of all feature maps of what will be written; UserError if one is too large."""
    result = RepVGG(arch, deploy=deploy).double().eval()
    result.load_state_dict(renamed)

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    errors = compare_models(model, result, image)

    worst = max(errors, key=errors.get)
    if not errors[worst] <= TOLERANCE:
        raise UserError(
            f'The result must agree with {source} to {TOLERANCE:g} relative, and {worst} differs by '
            f'{errors[worst]:.1e}. Nothing was written: look for values beyond the precision of the file.')
    return errors
