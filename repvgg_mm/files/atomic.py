"""Files and folders that are there whole or not at all, and checks of where a result will go."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from ..errors import UserError, reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK = 1 << 20  # bytes
TORCH_COULD_NOT_WRITE = ('PytorchStreamWriter', 'unexpected pos', 'file write failed')


@contextmanager
def atomic_path(path: str | PathLike) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` if the body succeeds and removed if not.

    A killed process can leave the temporary file `.NAME.xxxxxxxx`, which nothing takes for `path`, and which the next
    writing removes.

    Raises:
        UserError: the folder cannot be written to or is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent, path.name)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        os.close(handle)
        temporary = Path(name)

        try:
            with _held(temporary):
                yield temporary
                _sync_file(temporary)
                temporary.chmod(0o666 & ~_umask())
                os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    except OSError as error:
        raise _cannot_write(path, error) from None
    except RuntimeError as error:
        # torch.save reports in this way that it could not write all bytes.
        if not any(marker in str(error) for marker in TORCH_COULD_NOT_WRITE):
            raise
        raise _cannot_write(path, error) from None


@contextmanager
def atomic_folder(path: str | PathLike) -> Iterator[Path]:
    """A temporary folder whose content is in the folder `path` if the body succeeds, and gone if not.

    `path` is made, or keeps its other content; a file or folder of the same name is replaced. Where it is new, all
    files appear in one step. What a killed process left is removed, as in `atomic_path`.

    Raises:
        UserError: the folder cannot be written to or is full.
    """
    path = Path(path)
    existed = path.exists()
    parent = path if existed else path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent, path.name)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f'.{path.name}.', ignore_cleanup_errors=True) as name:
            temporary = Path(name)
            with _held(temporary):
                yield temporary
                _move_files(temporary, path, existed)
            _sync_folder(parent)

    except OSError as error:
        raise _cannot_write(path, error) from None


def sha256_of(path: str | PathLike) -> str:
    """Of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_output_file(flag: str, path: Path | None, *suffixes: str) -> None:
    """Before the work whose result `path` receives: UserError if it has no such suffix or cannot be written to."""
    if path is None:
        return

    if path.suffix.lower() not in suffixes or path.is_dir():
        found = 'a folder' if path.is_dir() else 'none'
        example = flag.strip('-') + suffixes[0]
        raise UserError(
            f'{flag} names a file in {", ".join(suffixes)}, and {path} is {found}. Give a name such as {example}.')

    _check_writable(path, path.absolute().parents)


def check_output_folder(folder: Path, overwrite: bool, flag: str = '--out') -> None:
    """Raise UserError if `folder` is a file, not empty and not to be overwritten, or cannot be written to.

    What a killed `atomic_folder` left in it is removed and does not count.
    """
    if os.path.isfile(folder):
        raise UserError(f'{flag} is a folder, and {folder} is a file. Choose another name.')

    _check_writable(folder, (folder, *folder.absolute().parents))
    if not os.path.exists(folder):
        return

    _remove_abandoned(folder, folder.name)
    content = list(folder.iterdir())
    if content and not overwrite:
        raise UserError(
            f'{flag} is a new or empty folder, and {folder} holds {len(content)} files. '
            'Choose another, or add --overwrite.')


def _check_writable(path: Path, folders: Iterable[Path]) -> None:
    """UserError if no file can be made in the first of `folders` that exists, where `path` will be."""
    folder = next(folder for folder in folders if os.path.exists(folder))  # False too where it cannot be looked up
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f'{path} could not be written ({error}); nothing was left there. '
            'Choose a folder that you can write to.') from None


def _move_files(temporary: Path, path: Path, existed: bool) -> None:
    """Let the content of a folder be that of `path`: one by one where it was there before, all in one step if not."""
    for inside in temporary.rglob('*'):
        if inside.is_file():
            _sync_file(inside)
            inside.chmod(0o666 & ~_umask())

    if existed:
        for moved in sorted(temporary.iterdir()):
            target = path / moved.name
            if moved.is_dir() and target.is_dir():
                shutil.rmtree(target)
            os.replace(moved, target)
    else:
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, path)


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold a file or folder, and say whether nobody else does. A process that ends, or is killed, holds nothing.

    Always False where there are no such locks: on Windows and some network drives.
    """
    if fcntl is None:
        yield False
        return

    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        os.close(handle)


def _remove_abandoned(folder: Path, name: str) -> None:
    """Remove what writing `name` in `folder` left when it was killed; that of a process that still writes stays."""
    temporary = re.compile(rf'\.{re.escape(name)}\.\w{{8}}')
    for path in folder.iterdir():
        if not temporary.fullmatch(path.name) or path.is_symlink():
            continue
        with suppress(OSError), _held(path) as free:
            if free and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif free:
                path.unlink()


def _cannot_write(path: Path, error: Exception) -> UserError:
    advice = 'Free space'
    if isinstance(error, PermissionError):
        advice = 'Close what has it open'  # Windows replaces no file that is in use
    return UserError(
        f'{path} could not be written ({reason(error)}); nothing was left there. '
        f'{advice} or choose a folder that you can write to.')


def _sync_file(path: Path) -> None:
    """Let the content of a file survive a power cut. Windows asks for a handle that may write."""
    with open(path, 'r+b') as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    """Let the new name of a file survive a power cut, where a folder can be opened: not on Windows.

    The file is there by now, so an error is none of the writing.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
