"""Checkpoint files: read without running code from them and checked for damage, written atomically."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import UserError
from .atomic import CHUNK, atomic_path
from .download import HUBS, WEB, download, is_remote
from .pickles import globals_of_file
from .tensor_file import is_tensor_file, read_tensor_file, write_tensor_file
from .unpickler import Refused, find, safe_pickle

ZIP = b'PK\x03\x04'
MOST_INFLATED = 50 << 20  # bytes that the records of a zip file may have beyond twice the file's own size
MOST_PICKLED = 100 << 20  # bytes of the pickle in it, of which reading takes three times as much memory
FOLDER = 0x10  # an attribute of a zip archive's entry
FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'  # a variable of torch, which then takes no reader but its own


def read_checkpoint(path: str | PathLike, map_location: str | torch.device = 'cpu', *, trust: bool = False) -> dict:
    """The dict in a checkpoint file, built from tensors, plain values and the types of known writers: see `unpickler`.

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
    _check_names(checkpoint, path)
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
        sizes = None
        if _is_zip(file):
            sizes = _verify_records(file)
        elif path.suffix == '.safetensors' or is_tensor_file(path):
            device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
            return read_tensor_file(path, device)

        file.seek(0)
        if trust:
            return torch.load(file, map_location=map_location, weights_only=False)
        _check_kind(path, sizes)
        reader = safe_pickle(sizes, path.stat().st_size)
        with _own_reader_allowed():
            return torch.load(file, map_location=map_location, weights_only=False, pickle_module=reader)


def _check_names(checkpoint: Mapping, path: Path) -> None:
    """UserError if what is in a checkpoint, or in its state dict, is not named by text."""
    for part in (checkpoint, checkpoint.get('state_dict')):
        names = part if isinstance(part, Mapping) else ()
        other = [name for name in names if not isinstance(name, str)]
        if other:
            raise UserError(
                f'A checkpoint names its tensors by text, and {path} has {len(other)} names such as '
                f'{str(other[0])[:50]}, a {type(other[0]).__name__}. Save model.state_dict(), or '
                'dict(state_dict=model.state_dict()).')


def _is_zip(file: BinaryIO) -> bool:
    """By the first bytes, as torch decides."""
    file.seek(0)
    return file.read(len(ZIP)) == ZIP


def _verify_records(file: BinaryIO) -> dict[str, int]:
    """Compare every record with its CRC32, at which torch.load does not look; give their sizes in bytes.

    A CRC of 0 is no checksum: torch.serialization.set_crc32_options(False) writes that.

    Raises:
        BadZipFile and others: the archive is damaged, or takes many times its size in memory.
    """
    sizes = {}
    with zipfile.ZipFile(file) as archive:
        inflated = sum(record.file_size for record in archive.infolist())
        if inflated > 2 * os.fstat(file.fileno()).st_size + MOST_INFLATED:
            raise zipfile.BadZipFile(f'its records take {inflated} bytes in memory, which no writer of weights packs')
        for record in archive.infolist():
            if record.filename.endswith('.pkl') and record.file_size > MOST_PICKLED:
                raise zipfile.BadZipFile(f'{record.filename} has {record.file_size} bytes beside the tensors')
            with archive.open(record) as content:
                while record.CRC and content.read(CHUNK):
                    pass

            name = record.filename.partition('/')[2].removeprefix('data/')
            if name in sizes or record.external_attr & FOLDER:  # from a folder torch reads nothing, without a word
                raise zipfile.BadZipFile(f'the record {name} is there twice or marked as a folder')
            sizes[name] = record.file_size
    return sizes


def _check_kind(path: Path, sizes: Mapping[str, int] | None) -> None:
    """Raise UserError for what torch.load gives to other readers: a program, an archive of torch before 0.2."""
    if 'constants.pkl' in (sizes or ()):
        raise UserError(
            f'A checkpoint is a dict of tensors, and {path} is a TorchScript archive, a program. '
            'Save model.state_dict() of the model that it was made from.')

    if sizes is None and tarfile.is_tarfile(path) and not _starts_with_zeros(path):
        asked = _refused_globals(path)
        raise _runs_code(path, asked) if asked else UserError(
            f'Reading a checkpoint runs no code from it, and {path} is a tar archive of torch before 0.2, '
            'which can only be read by running what is in it. If you trust where the file comes from, '
            'read it with --trust-checkpoint.')


@contextmanager
def _own_reader_allowed() -> Iterator[None]:
    """The variable asks for a reader that runs no code, and this one runs none."""
    forced = os.environ.pop(FORCED, None)
    try:
        yield
    finally:
        if forced is not None:
            os.environ[FORCED] = forced


def _refusal(path: Path, error: Exception) -> UserError:
    """Why a file was not read: code in it, or damage."""
    asked = _refused_globals(path) if isinstance(error, Refused) else []
    if asked:
        return _runs_code(path, asked)
    return _not_a_checkpoint(path, error)


def _runs_code(path: Path, asked: Sequence[str]) -> UserError:
    return UserError(
        f'Reading a checkpoint runs no code from it, and {path} asks for {", ".join(asked[:3])}, which mmengine '
        'does not write. If you trust where the file comes from, read it with --trust-checkpoint.')


def _refused_globals(path: Path) -> list[str]:
    """What the pickle in a file asks for beyond what the reader knows."""
    with open(path, 'rb') as file:
        try:
            found = globals_of_file(file)
        except Exception:  # a damaged archive
            return []
    return [name for name in found if re.fullmatch(r'[\w.]+', name) and not _is_known(name)]


def _is_known(name: str) -> bool:
    if name.endswith('Storage') and name.startswith('torch.'):
        return True  # torch reads it as the type of a tensor's numbers
    try:
        find(name)
    except Refused:
        return False
    return True


def _starts_with_zeros(path: Path) -> bool:
    """As a file does of which only the size was written; it passes for a tar archive without members."""
    with open(path, 'rb') as file:
        block = file.read(tarfile.BLOCKSIZE)
    return not block.strip(b'\0')


def _is_web_page(path: Path) -> bool:
    with open(path, 'rb') as file:
        start = file.read(100)
    return start.lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith((b'<!doctype html', b'<html'))


def _not_a_checkpoint(path: Path, error: Exception) -> UserError:
    if _is_web_page(path):
        return UserError(
            f'A checkpoint is a dict of tensors, and {path} is a web page: what a server sends for a file that it does '
            'not have, or that asks for a login. Open the address in a browser and look for the file itself.')
    size = path.stat().st_size
    why = str(error).strip().split('\n')[0][:200]
    return UserError(
        f'{path} cannot be read as a checkpoint ({size} bytes; {type(error).__name__}: {why}). '
        'It is damaged, incomplete or another kind of file: copy or download it again.')
