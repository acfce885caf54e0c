"""Checkpoint files: read without running code from them, written atomically."""

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
