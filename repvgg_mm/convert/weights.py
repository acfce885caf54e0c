"""Weights on their way into a whole model: completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import UserError
from ..pretrained import check_kinds, check_whole, listed, unwrap
from ..stages import Stages

WRAPPER_PREFIXES = ('module.', '_orig_mod.')  # of DDP, of torch.compile


def state_dict_of(checkpoint: Mapping, source: str) -> dict[str, Tensor]:
    """The weights inside a checkpoint: `state_dict`, `model`, `ema` or the dict itself, without wrappers' prefixes.

    The prefixes are those of DDP (`module.`) and torch.compile (`_orig_mod.`), removed where they
    lead every name. Under mmengine's EMAHook `state_dict` holds the averaged weights, which are the
    ones to use.

    Raises:
        UserError: there are no tensors.
    """
    tensors = unwrap(checkpoint)
    if not tensors:
        raise UserError(
            f'A checkpoint holds named tensors, and {source} has none; its keys are '
            f'{list(checkpoint)[:5]}. Give a checkpoint that training wrote.')
    prefix = _wrapper_prefix(tensors)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def load_strictly(model: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Load weights so that every tensor of the model is set; for RepVGGs inside as their `fit` does it.

    Raises:
        UserError: deploy-form weights for a training form, other architecture, missing or unexpected
            tensors, tensors of another kind of numbers; the model is then unchanged.
    """
    weights = state_dict_of(checkpoint, source)
    current = model.state_dict()
    prefix = _wrapper_prefix(current)
    expected = {name.removeprefix(prefix): tensor for name, tensor in current.items()}

    try:
        found = _fit_backbones(model, weights, prefix)
        check_kinds(found, expected)
    except UserError as error:
        raise UserError(f'{source}: {error}') from None
    _check_complete(found, expected, source)

    model.load_state_dict({prefix + name: tensor for name, tensor in weights.items()}, strict=True)


def _check_complete(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """UserError unless both have the same names and shapes."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]

    shapes = []
    for name, tensor in expected.items():
        if name in found and found[name].shape != tensor.shape:
            shapes.append(f'{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}')

    if missing or unexpected or shapes:
        fitting = len(expected) - len(missing) - len(shapes)
        differences = [listed('missing', missing), listed('unexpected', unexpected), listed('of other shape', shapes)]
        raise UserError(
            f'A checkpoint must hold exactly the tensors of the model, and {source} does not fit '
            f'({fitting} of {len(expected)} tensors do): {"; ".join(differences)}. '
            'Use the config that the checkpoint was trained with: the same arch, head and number of classes.')


def _fit_backbones(model: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`state_dict` with the part of every RepVGG in `model` replaced by what fits it."""
    for path, backbone in model.named_modules():
        if not isinstance(backbone, Stages):
            continue

        place = f'{path}.'.removeprefix(prefix) if path else ''
        own, others = {}, {}
        for name, tensor in state_dict.items():
            if name.startswith(place):
                own[name.removeprefix(place)] = tensor
            else:
                others[name] = tensor

        if place:
            check_whole(own, state_dict)
        fitted = backbone.fit(own).tensors
        state_dict = others | {place + name: tensor for name, tensor in fitted.items()}
    return state_dict


def _wrapper_prefix(names: Mapping) -> str:
    """The longest chain of 'module.' and '_orig_mod.' that leads every name."""
    prefix = ''
    while names:
        longer = [prefix + part for part in WRAPPER_PREFIXES if _lead_all(prefix + part, names)]
        if not longer:
            break
        prefix = longer[0]
    return prefix


def _lead_all(prefix: str, names: Mapping) -> bool:
    return all(name.startswith(prefix) for name in names)
