"""Weights on their way into a model: completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .errors import UserError

TRAINING_KEY, DEPLOY_KEY = '.branch_3x3.conv.weight', '.branch_reparam.weight'


def state_dict_of(checkpoint: Mapping, source: str) -> dict[str, Tensor]:
    """The weights inside a checkpoint: `state_dict`, `model` or the dict itself, a leading `module.` removed.

    Under mmengine's EMAHook `state_dict` holds the averaged weights, which are the ones to use.

    Raises:
        UserError: there are no tensors.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f'A checkpoint holds named tensors, and {source} has none; its keys are '
                        f'{list(checkpoint)[:5]}. Give a checkpoint that training wrote.')
    prefix = _leading_module(tensors)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def load_strictly(model: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Load weights so that every tensor of the model and of the checkpoint is used exactly once.

    Raises:
        UserError: other form, other architecture, missing or unexpected tensors; the model is then
            unchanged.
    """
    state_dict = state_dict_of(checkpoint, source)
    prefix = _leading_module(model.state_dict())  # of DDP and of other wrappers
    expected = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    if form_of(state_dict) == 'deploy' and form_of(expected) == 'training':
        raise UserError(
            f'A model in training form needs a checkpoint in training form, and {source} is in deploy form: its '
            'branches were fused and cannot be told apart again. Use the checkpoint it was converted from, '
            'or a config with backbone=dict(deploy=True).')
    if form_of(state_dict) == 'training' and form_of(expected) == 'deploy':
        raise UserError(
            f'A model built with deploy=True needs a checkpoint in deploy form, and {source} is in training form. '
            'Convert it first: python tools/convert_whole.py CONFIG CHECKPOINT --out DIR.')
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    shapes = [f'{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}'
              for name, tensor in expected.items() if name in state_dict and state_dict[name].shape != tensor.shape]
    if missing or unexpected or shapes:
        raise UserError(
            f'A checkpoint must hold exactly the tensors of the model, and {source} does not fit '
            f'({len(expected) - len(missing) - len(shapes)} of {len(expected)} tensors do): '
            f'{_some("missing", missing)}; {_some("unexpected", unexpected)}; {_some("other shape", shapes)}. '
            'Use the config that the checkpoint was trained with: the same arch, head and number of classes.')
    model.load_state_dict({prefix + name: tensor for name, tensor in state_dict.items()}, strict=True)


def form_of(state_dict: Mapping) -> str | None:
    """'training' or 'deploy', None for weights without any RepVGG block."""
    names = [f'.{name}' for name in state_dict]
    if any(name.endswith(TRAINING_KEY) for name in names):
        return 'training'
    return 'deploy' if any(name.endswith(DEPLOY_KEY) for name in names) else None


def _some(what: str, names: list[str]) -> str:
    listed = ', '.join(names[:3])
    return f'{len(names)} {what}' + (f' ({listed}{", ..." if len(names) > 3 else ""})' if names else '')


def _leading_module(names: Mapping) -> str:
    """'module.', repeated as often as it leads every name."""
    prefix = ''
    while names and all(name.startswith(f'{prefix}module.') for name in names):
        prefix += 'module.'
    return prefix
