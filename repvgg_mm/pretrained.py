"""Weights on their way into a RepVGG: any layout, either form, completely or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .archs import ARCHS, Arch, name_of
from .block import check_statistics
from .errors import UserError
from .fusion import ScaleShift, fuse_branches, scale_shift_of_norm
from .layouts import Weights, form_of, to_native

WRAPPERS = ('state_dict', 'model', 'ema')
NORM_TENSORS = ('weight', 'bias', 'running_mean', 'running_var')
KERNELS = ('branch_3x3.conv.weight', 'branch_reparam.weight', 'se_layer.conv1.conv.weight')
MOST_NAMES = 3  # in a message


class Fit(NamedTuple):
    """Weights that fit a backbone, and one line that says how they were found."""

    tensors: dict[str, Tensor]
    summary: str


def unwrap(checkpoint: Mapping) -> dict[str, Tensor]:
    """The named tensors in a checkpoint: those under `state_dict`, `model` or `ema`, in this order, or its own."""
    for key in WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break

    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def fit_to_backbone(
    checkpoint: Mapping, expected: Mapping[str, Tensor], arch: Arch, *, eps: float = 1e-5, partial: bool = False
) -> Fit:
    """The weights of `checkpoint` under the names and in the form of a backbone's state dict `expected`.

    Training-form weights for a backbone in deploy form are fused as `RepVGGBlock.fuse` does it, with
    the epsilon `eps` of the BatchNorms. Stages that the backbone does not have, and tensors that are
    no RepVGG's, are set aside.

    Args:
        partial: allow missing tensors and other shapes; the values of `expected` then stay.

    Raises:
        UserError: no RepVGG, weights that are no real numbers, deploy-form weights for a training form, or not
            all tensors of the backbone are there with its shapes.
    """
    found = to_native(unwrap(checkpoint))
    check_kinds(found.tensors)
    form, expected_form = form_of(found.tensors), form_of(expected)
    fuse = form == 'training' and expected_form == 'deploy'
    if form == 'deploy' and expected_form == 'training':
        raise UserError(
            'A RepVGG in training form needs weights in training form, and these are in deploy form: their branches '
            'were fused and cannot be told apart again. Use the checkpoint they were converted from, or build the '
            'model with backbone=dict(deploy=True).')

    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if fuse:
        shapes = _shapes_in_training_form(shapes)
    tensors, differences = _coverage(found.tensors, shapes)

    counts = f'{_count_weights(tensors)} of {_count_weights(shapes)} tensors'
    if any(differences.values()) and not (partial and tensors):
        likeness, advice = _likeness_and_advice(found, arch)
        raise UserError(
            f'RepVGG loads weights that cover it completely. {likeness}: {counts} fit ({found.layout} '
            f'layout), {_described(differences)}. {advice}')

    how = ', fused while loading' if fuse else ''
    summary = (
        f'RepVGG: {counts} loaded ({found.layout} layout, {form} form{how}): {_described(differences)}; '
        f'{listed("set aside", found.others)}.')
    if fuse:
        tensors = fuse_state_dict(tensors, eps)
    fitting = {name: tensors.get(name, tensor) for name, tensor in expected.items()}
    return Fit(fitting, summary)


def fuse_state_dict(tensors: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """The deploy form of a bare RepVGG's training-form weights; blocks that are not complete are left out.

    Raises:
        UserError: running statistics that are not finite, or negative variances.
    """
    fused = {name: tensor for name, tensor in tensors.items() if '.branch_' not in name}
    for name in tensors:
        block, part, _ = name.partition('.branch_3x3.conv.weight')
        if part and set(_training_names(block)) <= set(tensors):
            weight, bias = _fuse_block(block, tensors, eps)
            fused[f'{block}.branch_reparam.weight'] = weight
            fused[f'{block}.branch_reparam.bias'] = bias
    return fused


def check_kinds(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None = None) -> None:
    """Raise UserError for tensors that would change their values when they are copied into a model.

    Those are complex numbers, whole numbers (of a quantised model, for example) and sparse ones. Without `expected`,
    the model's own, every tensor but a counter of batches is a weight.
    """
    wrong = []
    for name, tensor in tensors.items():
        is_weight = _is_weight(name)
        if expected and name in expected:
            is_weight = expected[name].is_floating_point()

        fits = tensor.layout is torch.strided and not tensor.is_complex()
        if not fits or (is_weight and not tensor.is_floating_point()):
            wrong.append(f'{name} of {str(tensor.dtype).removeprefix("torch.")}')
    if wrong:
        raise UserError(
            f'Weights are dense tensors of floating-point numbers, and here are {listed("of another kind", wrong)}. '
            'Use a checkpoint that was not quantised or otherwise turned into another kind of numbers.')


def guess_arch(tensors: Mapping[str, Tensor]) -> str | None:
    """The variant that has the most kernels of the same name and shape, None if no variant has any."""
    kernels = set()
    for name, tensor in tensors.items():
        if name.endswith(KERNELS):
            kernels.add((name, tuple(tensor.shape)))

    part = 'branch_reparam.weight' if form_of(tensors) == 'deploy' else 'branch_3x3.conv.weight'
    shared = {}
    for name, arch in ARCHS.items():
        own = _kernels(arch, part)
        shared[name] = len(kernels & own), -len(own)  # of equals the smaller one

    best = max(shared, key=shared.get)
    count, _ = shared[best]
    return best if count else None


def listed(what: str, names: Sequence[str]) -> str:
    """'3 missing (a, b, ...)', with at most the first three names."""
    if not names:
        return f'0 {what}'
    shown = list(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        shown.append('...')
    return f'{len(names)} {what} ({", ".join(shown)})'


def _coverage(
    found: Mapping[str, Tensor], shapes: Mapping[str, tuple]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The tensors that have the names and shapes wanted, and what is missing, unexpected or of other shape.

    Counters of batches may be there or not: old files have none, and fusing needs none.
    """
    stages = {_stage(name) for name in shapes}
    missing = [name for name in shapes if name not in found and _is_weight(name)]

    fitting, unexpected, other_shape = {}, [], []
    for name, tensor in found.items():
        shape = tuple(tensor.shape)
        if shape == shapes.get(name):
            fitting[name] = tensor
        elif name in shapes:
            other_shape.append(f'{name} {shape} instead of {shapes[name]}')
        elif _stage(name) in stages and _is_weight(name):
            unexpected.append(name)
    return fitting, dict(missing=missing, unexpected=unexpected, other_shape=other_shape)


def _is_weight(name: str) -> bool:
    return not name.endswith('num_batches_tracked')


def _count_weights(names: Iterable[str]) -> int:
    return sum(_is_weight(name) for name in names)


def _stage(name: str) -> str:
    return name.split('.')[0]


def check_whole(own: Mapping, checkpoint: Mapping) -> None:
    """Raise UserError if a whole model is given the weights of a bare RepVGG: none are `own`, its backbone's."""
    if own:
        return
    found = to_native(checkpoint)
    if found.tensors:
        raise UserError(
            f'A whole model loads the weights of all its parts, and these are {len(found.tensors)} tensors of a bare '
            f'RepVGG ({found.layout} layout). Start a training from them with backbone.init_cfg=dict('
            "type='Pretrained', checkpoint=...); what is converted is a checkpoint that a training has written.")


def _described(differences: Mapping[str, list[str]]) -> str:
    counts = [listed(what.replace('_', ' '), names) for what, names in differences.items()]
    return ', '.join(counts)


def _likeness_and_advice(found: Weights, arch: Arch) -> tuple[str, str]:
    """What the weights look like, and what to do about it."""
    guess, model = guess_arch(found.tensors), name_of(arch)
    partial = 'to load only what fits, set backbone.partial_load=True.'
    if not found.tensors and not found.others:
        return (
            "No name here begins as this backbone's do",
            "Weights of a bare backbone belong into backbone.init_cfg=dict(type='Pretrained', checkpoint=...), those "
            'of a whole model into load_from.')
    if not found.tensors:
        others = listed('other names', found.others)
        return (
            f"No name here is a RepVGG's (official, mmpretrain or timm; {others})",
            'Check which file this is; weights of a bare backbone belong into backbone.init_cfg=dict('
            "type='Pretrained', checkpoint=...), those of a whole model into load_from.")
    if guess is None:
        return f'These look like no known variant, the model is {model}', f'Build it with their arch; {partial}'
    if guess == model:
        return (
            f'These look like {guess} weights, which the model is too, but with other inputs, some layers or half '
            'of the file',
            f'Get the whole file; {partial}')
    return (
        f'These look like {guess} weights, the model is {model}',
        f'Build it with arch={guess!r}, or get others; {partial}')


def _kernels(arch: Arch, part: str) -> set[tuple[str, tuple[int, ...]]]:
    kernels = set()
    for block in arch.blocks():
        name = 'stem' if block.stage == 0 else f'stage_{block.stage}.{block.index}'
        shape = (block.out_channels, block.in_channels // block.groups, 3, 3)
        kernels.add((f'{name}.{part}', shape))
        if block.se_channels:
            shape = (block.se_channels, block.out_channels, 1, 1)
            kernels.add((f'{name}.se_layer.conv1.conv.weight', shape))
    return kernels


def _has_identity(block: str) -> bool:
    return block != 'stem' and not block.endswith('.0')


def _training_names(block: str) -> list[str]:
    norms = ['branch_3x3.norm', 'branch_1x1.norm']
    if _has_identity(block):
        norms.append('branch_norm')

    names = [f'{block}.branch_3x3.conv.weight', f'{block}.branch_1x1.conv.weight']
    for norm in norms:
        names += [f'{block}.{norm}.{tensor}' for tensor in NORM_TENSORS]
    return names


def _shapes_in_training_form(shapes: Mapping[str, tuple]) -> dict[str, tuple]:
    training = {}
    for name, shape in shapes.items():
        block, is_kernel, _ = name.partition('.branch_reparam.weight')
        if is_kernel:
            training |= dict.fromkeys(_training_names(block), shape[:1])  # right for all tensors of norms
            training[f'{block}.branch_3x3.conv.weight'] = shape
            training[f'{block}.branch_1x1.conv.weight'] = (*shape[:2], 1, 1)
        elif '.branch_reparam.' not in name:
            training[name] = shape
    return training


def _fuse_block(block: str, tensors: Mapping[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Kernel and bias of one block, as `RepVGGBlock.fuse` computes them."""
    weight = tensors[f'{block}.branch_3x3.conv.weight']
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def scale_shift(norm: str) -> ScaleShift:
        stored = (tensors[f'{block}.{norm}.{tensor}'] for tensor in NORM_TENSORS)
        gamma, beta, mean, var = (tensor.to(dtype) for tensor in stored)
        check_statistics(f'{block}.{norm}', mean, var)
        return scale_shift_of_norm(mean, var, gamma, beta, eps)

    norm_identity, groups = None, 1  # groups count for the identity alone
    if _has_identity(block):
        norm_identity = scale_shift('branch_norm')
        groups = len(weight) // weight.shape[1]

    weight_1x1 = tensors[f'{block}.branch_1x1.conv.weight'].to(dtype)
    kernel, bias = fuse_branches(
        weight, scale_shift('branch_3x3.norm'), weight_1x1, scale_shift('branch_1x1.norm'), norm_identity, groups)
    return kernel.to(weight.dtype), bias.to(weight.dtype)
