"""Checkpoint files: read without running code from them and checked for damage, written atomically."""

from __future__ import annotations

import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import UserError
from .atomic import CHUNK, atomic_path
from .download import HUBS, WEB, download, is_remote
from .pickles import globals_of_file
from .tensor_file import is_tensor_file, read_tensor_file, write_tensor_file

ZIP = b'PK\x03\x04'
PLAIN_KINDS = 'bBhHiIlLqQefd?'  # of numbers in numpy
STATISTICS = ('min', 'max', 'current', 'mean')  # of mmengine's log histories


def read_checkpoint(path: str | PathLike, map_location: str | torch.device = 'cpu', *, trust: bool = False) -> dict:
    """The dict in a checkpoint file, read with `weights_only=True` and mmengine's own types allowed.

    Args:
        path: a file of torch or a `.safetensors` file (then `state_dict` and `meta`); or its URL or hub
            name (`openmmlab://...`), from which it is downloaded once.
        trust: unpickle whatever the file contains, which can run any code in it.

    Raises:
        UserError: there is no such file, it is damaged or no checkpoint, or it needs a global that
            is not on the list.
    """
    if is_remote(path):
        return _read_remote(path, map_location, trust)

    path = Path(path).expanduser()
    if not path.is_file():
        found = 'a folder' if path.is_dir() else 'missing'
        raise UserError(
            f'A checkpoint is a file, and {path} is {found}. '
            'Check the path; training writes checkpoints to its --work-dir.')

    try:
        checkpoint = _read_file(path, map_location, trust)
    except UserError:
        raise
    except Exception as error:  # what torch and safetensors raise for damaged files depends on where the damage is
        raise _refusal(path, error) from None

    if not isinstance(checkpoint, Mapping):
        raise UserError(
            f'A checkpoint is a dict of tensors, and {path} holds a {type(checkpoint).__name__}. '
            'Save model.state_dict() rather than the model.')
    return checkpoint


def use_safe_reader(trust: bool = False) -> None:
    """Let mmengine's Runner read everything (`load_from`, `--resume`, `init_cfg`) through `read_checkpoint`.

    Schemes of mmengine that `read_checkpoint` does not know (`s3://`) are refused, or left as they are with `trust`.
    """
    from mmengine.runner import CheckpointLoader

    def load_from_read_checkpoint(filename: str, map_location: str | torch.device | None = None) -> dict:
        return read_checkpoint(filename, map_location, trust=trust)

    known = ('', *WEB, *HUBS)
    replaced = [prefix for prefix in CheckpointLoader._schemes if prefix in known or not trust]
    CheckpointLoader.register_scheme(replaced, load_from_read_checkpoint, force=True)


def write_checkpoint(path: str | PathLike, checkpoint: Mapping) -> None:
    """Write to `path`, which afterwards is the old file or the whole new one; its suffix may be .safetensors.

    Raises:
        UserError: it cannot be written, or safetensors has no place for what is in the checkpoint.
    """
    with atomic_path(path) as temporary:
        if Path(path).suffix == '.safetensors':
            write_tensor_file(temporary, checkpoint)
        else:
            torch.save(checkpoint, temporary)


@cache
def safe_globals() -> list:
    """What mmengine's Runner writes beside tensors: log histories, as numpy arrays and scalars.

    The official RepVGG checkpoints hold their config as a yacs node, read as the OrderedDict that torch can fill.
    """
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    dtypes = {type(np.dtype(kind)) for kind in PLAIN_KINDS}
    entries = [np.ndarray, np.dtype, *dtypes, (OrderedDict, 'yacs.config.CfgNode')]

    for name in ('_reconstruct', 'scalar'):
        function = getattr(multiarray, name)
        entries.append((function, f'numpy._core.multiarray.{name}'))  # as numpy 2 writes it
        entries.append((function, f'numpy.core.multiarray.{name}'))   # as numpy 1 does

    try:
        from mmengine.logging import HistoryBuffer
    except ImportError:  # then no file can be made into one
        return entries

    def statistic_of_history(owner: object, name: str) -> object:
        """`getattr` for the one use that log histories make of it: HistoryBuffer.min and its like."""
        if owner is HistoryBuffer and name in STATISTICS:
            return getattr(owner, name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr of {owner!r}')

    return [*entries, HistoryBuffer, (statistic_of_history, 'builtins.getattr')]


def _read_remote(source: str, map_location: str | torch.device | None, trust: bool) -> dict:
    path, fresh = download(source)
    try:
        checkpoint = read_checkpoint(path, map_location, trust=trust)
    except UserError:
        if fresh:
            path.unlink(missing_ok=True)  # or the next call would take it for a good one
        raise

    if source.startswith('mmcls://'):
        from mmengine.runner.checkpoint import _process_mmcls_checkpoint
        return _process_mmcls_checkpoint(checkpoint)
    return checkpoint


def _read_file(path: Path, map_location: str | torch.device | None, trust: bool) -> object:
    with open(path, 'rb') as file:
        if _is_zip(file):
            _verify_records(file)
        elif path.suffix == '.safetensors' or is_tensor_file(path):
            device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
            return read_tensor_file(path, device)

        file.seek(0)
        with torch.serialization.safe_globals(safe_globals()):
            return torch.load(file, map_location=map_location, weights_only=not trust)


def _is_zip(file: BinaryIO) -> bool:
    """By the first bytes, as torch decides."""
    file.seek(0)
    return file.read(len(ZIP)) == ZIP


def _verify_records(file: BinaryIO) -> None:
    """Compare every record with its CRC32, at which torch.load does not look.

    A CRC of 0 is no checksum: torch.serialization.set_crc32_options(False) writes that.

    Raises:
        BadZipFile and others: the archive is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            with archive.open(record) as content:
                while record.CRC and content.read(CHUNK):
                    pass


def _refusal(path: Path, error: Exception) -> UserError:
    """Why a file was not read: code in it, a kind that has to be unpickled, or damage."""
    message = str(error)
    if 'TorchScript' in message:
        return UserError(
            f'A checkpoint is a dict of tensors, and {path} is a TorchScript archive, a program. '
            'Save model.state_dict() of the model that it was made from.')

    asked = []
    if isinstance(error, (pickle.UnpicklingError, RuntimeError)):
        asked = _refused_globals(path, message)
    if asked:
        return UserError(
            f'Reading a checkpoint runs no code from it, and {path} asks for {", ".join(asked[:3])}, which mmengine '
            'does not write. If you trust where the file comes from, read it with --trust-checkpoint.')

    if '.tar format' in message and not _starts_with_zeros(path):
        return UserError(
            f'Reading a checkpoint runs no code from it, and {path} is a tar archive of torch before 0.2, '
            'which can only be read by running what is in it. If you trust where the file comes from, '
            'read it with --trust-checkpoint.')
    return _not_a_checkpoint(path, error)


def _refused_globals(path: Path, message: str) -> list[str]:
    """What the pickle in a file asks for beyond the safe list; or, from that list, what torch's message refuses."""
    with open(path, 'rb') as file:
        try:
            found = globals_of_file(file)
        except Exception:  # a damaged archive
            return []

    names = [name for name in found if re.fullmatch(r'[\w.]+', name)]
    safe = _safe_names() | set(torch._weights_only_unpickler._get_allowed_globals())
    beyond = [name for name in names if name not in safe]
    if beyond:
        return beyond
    return [name for name in names if f'GLOBAL {name} ' in message]


def _safe_names() -> set[str]:
    """The names of `safe_globals` as a pickle asks for them."""
    names = set()
    for entry in safe_globals():
        if isinstance(entry, tuple):
            names.add(entry[1])
        else:
            names.add(f'{entry.__module__}.{entry.__qualname__}')
    return names


def _starts_with_zeros(path: Path) -> bool:
    """As a file does of which only the size was written; it passes for a tar archive without members."""
    with open(path, 'rb') as file:
        block = file.read(tarfile.BLOCKSIZE)
    return not block.strip(b'\0')


def _not_a_checkpoint(path: Path, error: Exception) -> UserError:
    size = path.stat().st_size
    why = str(error).strip().split('\n')[0][:200]
    return UserError(
        f'{path} cannot be read as a checkpoint ({size} bytes; {type(error).__name__}: {why}). '
        'It is damaged, incomplete or another kind of file: copy or download it again.')
