"""Checkpoints: read without running code from them, load completely or not at all, write atomically."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .errors import UserError


def _statistic_of_history(owner: object, name: str) -> object:
    """`getattr` for the one use that mmengine's log histories make of it: HistoryBuffer.min and its like."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr of {owner!r}')


# What mmengine's Runner writes beside tensors: log histories, as numpy arrays and scalars.
_MULTIARRAY = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
SAFE_GLOBALS = [
    HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in 'bBhHiIlLqQefd?'},
    *((getattr(_MULTIARRAY, name), f'numpy.{core}.multiarray.{name}')
      for name in ('_reconstruct', 'scalar') for core in ('_core', 'core')),
    (_statistic_of_history, 'builtins.getattr')]

TRAINING_KEY, DEPLOY_KEY = '.branch_3x3.conv.weight', '.branch_reparam.weight'


def read_checkpoint(path: str | PathLike, map_location: str | torch.device = 'cpu', *, trust: bool = False) -> dict:
    """The dict in a checkpoint file, read with `weights_only=True` and mmengine's own types allowed.

    Args:
        trust: unpickle whatever the file contains, which can run any code in it.

    Raises:
        UserError: there is no such file, it is damaged or no checkpoint, or it needs a global that
            is not on the list.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'A checkpoint is a file, and {path} is {"a folder" if path.is_dir() else "missing"}. '
                        'Check the path; training writes checkpoints to its --work-dir.')
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location=map_location, weights_only=not trust)
    except pickle.UnpicklingError as error:
        refused = _refused_global(error)
        if refused is None:
            raise _not_a_checkpoint(path, error) from None
        raise UserError(
            f'Reading a checkpoint runs no code from it, and {path} asks for {refused}, which mmengine does not write. '
            'If you trust where the file comes from, read it with --trust-checkpoint.') from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError,
            UnicodeDecodeError, AssertionError, OverflowError) as error:
        # What torch.load raises for damaged files depends on where the damage is.
        raise _not_a_checkpoint(path, error) from None
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'A checkpoint is a dict of tensors, and {path} holds a {type(checkpoint).__name__}. '
                        'Save model.state_dict() rather than the model.')
    return checkpoint


def use_safe_reader(trust: bool = False) -> None:
    """Let mmengine's Runner read local files (`load_from`, `--resume`) through `read_checkpoint`."""
    CheckpointLoader.register_scheme(
        prefixes='', loader=lambda filename, map_location=None: read_checkpoint(filename, map_location, trust=trust),
        force=True)


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


def write_checkpoint(path: str | PathLike, checkpoint: Mapping) -> None:
    """`torch.save` to `path`, which afterwards is the old file or the whole new one."""
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)


@contextmanager
def atomic_path(path: str | PathLike) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` if the body succeeds and removed if not.

    Raises:
        UserError: the folder cannot be written to or is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, 'rb') as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    except RuntimeError as error:
        # How torch.save reports that it could not write all bytes.
        if not any(marker in str(error) for marker in ('PytorchStreamWriter', 'unexpected pos', 'file write failed')):
            raise
        raise _cannot_write(path, error) from None


def sha256_of(path: str | PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


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


def _refused_global(error: pickle.UnpicklingError) -> str | None:
    found = re.search(r'(?:Unsupported global: GLOBAL|Unsupported class|unsupported GLOBAL) ([\w.]*\w)', str(error))
    return found and found[1]


def _not_a_checkpoint(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().split('\n')[0][:200]
    return UserError(f'{path} cannot be read as a checkpoint ({path.stat().st_size} bytes; {type(error).__name__}: '
                     f'{reason}). It is damaged, incomplete or another kind of file: copy or download it again.')


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().split('\n')[0][:200]
    return UserError(f'{path} could not be written ({reason}); nothing was left there. '
                     'Free space or choose a folder that you can write to.')


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
