"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from ..errors import UserError
from .download import local_path


def check_output_file(flag: str, path: Path | None, *suffixes: str) -> None:
    """Before the work whose result `path` receives: UserError if it has no such suffix or cannot be written to."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes or path.is_dir():
        found = 'a folder' if path.is_dir() else 'none'
        raise UserError(f'{flag} names a file in {", ".join(suffixes)}, and {path} is {found}. Give a name such as '
                        f'{flag.strip("-")}{suffixes[0]}.')
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f'{path} could not be written ({error}); nothing was left there. '
                        'Choose a folder that you can write to.') from None
CHUNK = 1 << 20  # bytes


@contextmanager
def atomic_path(path: str | PathLike) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` if the body succeeds and removed if not.

    A killed process can leave the temporary file `.NAME.xxxxxxxx`, which nothing takes for `path`.

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
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    except RuntimeError as error:
        # How torch.save reports that it could not write all bytes.
        if not any(marker in str(error) for marker in ('PytorchStreamWriter', 'unexpected pos', 'file write failed')):
            raise
        raise _cannot_write(path, error) from None


@contextmanager
def atomic_folder(path: str | PathLike) -> Iterator[Path]:
    """A temporary folder whose files are in the folder `path` if the body succeeds, and gone if not.

    `path` is made, or keeps its other files; a file of the same name is replaced. Where it is new, all
    files appear in one step.

    Raises:
        UserError: the folder cannot be written to or is full.
    """
    path = Path(path)
    existed = path.exists()
    try:
        parent = path if existed else path.parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f'.{path.name}.', ignore_cleanup_errors=True) as name:
            temporary = Path(name)
            yield temporary
            for file in temporary.iterdir():
                with open(file, 'rb') as written:
                    os.fsync(written.fileno())
                file.chmod(0o666 & ~_umask())
            if existed:
                for file in sorted(temporary.iterdir()):
                    os.replace(file, path / file.name)
            else:
                temporary.chmod(0o777 & ~_umask())
                os.replace(temporary, path)
            _sync_folder(parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def sha256_of(path: str | PathLike) -> str:
    """Of a file, or of the downloaded file of a URL or hub name."""
    digest = hashlib.sha256()
    with open(local_path(path), 'rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().split('\n')[0][:200]
    return UserError(f'{path} could not be written ({reason}); nothing was left there. '
                     'Free space or choose a folder that you can write to.')


def _sync_folder(folder: Path) -> None:
    """Let the new name of a file survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Raise UserError if `folder` is a file, or not empty and not to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f'--out is a folder, and {folder} is a file. Choose another name.')
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserError(f'--out is a new or empty folder, and {folder} holds {len(list(folder.iterdir()))} files. '
                        'Choose another, or add --overwrite.')
