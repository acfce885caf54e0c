"""Checkpoints with an address: downloaded once, by torch's downloader, to the folder in which mmengine looks too."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch

from ..errors import UserError, reason
from .atomic import sha256_of

WEB = ('http://', 'https://')
MOST_SECONDS = 60  # without a byte from the server
ODD_IN_NAMES = re.compile(r'[^\w.+=@ -]')  # of files: separators, control characters, what a shell takes for its own
LONGEST_NAME = 120  # characters, which every file system has room for, with what torch adds


def external_models() -> dict:
    """mmengine's own table from names to addresses, as the two below it."""
    from mmengine.runner.checkpoint import get_external_models
    return get_external_models()


def mmcls_models() -> dict:
    from mmengine.runner.checkpoint import get_mmcls_models
    return get_mmcls_models()


def torchvision_models() -> dict:
    from mmengine.runner.checkpoint import get_torchvision_models
    return get_torchvision_models()


HUBS = {
    'openmmlab://': external_models,
    'open-mmlab://': external_models,
    'mmcls://': mmcls_models,
    'torchvision://': torchvision_models,
    'modelzoo://': torchvision_models,
}
SCHEMES = (*WEB, *HUBS)


def is_remote(source: object) -> bool:
    """Whether a checkpoint's name is a URL or a hub name rather than a path."""
    return isinstance(source, str) and '://' in source


def local_path(source: str | os.PathLike) -> Path:
    """Where the file of a path, a URL or a hub name is, or will be once it is downloaded.

    A name with a hash in it stands for one content wherever it comes from, and torch and mmengine find the file under
    it too. Any other name goes with a hash of the whole address: two servers can both have a `best.pth`.

    Raises:
        UserError: the hub has no such name, or the scheme is none of those that are downloaded.
    """
    address = _address(source) if is_remote(source) else source
    if not is_remote(address):
        return Path(address).expanduser()

    name = _name_in(address)
    if name in ('', '.', '..'):
        raise UserError(
            f'The address of a checkpoint ends in the name of a file, and {without_password(str(source))} has none. '
            'Give the address of the file itself.')

    if _hash_in(name) is None:
        of_address = hashlib.sha256(address.encode(errors='replace')).hexdigest()[:12]
        name = f'{Path(name).stem}.{of_address}{Path(name).suffix}'
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


def without_password(address: str) -> str:
    """As it may stand on a screen and in a log."""
    return re.sub(r'//[^/@]*@', '//', address)


def _name_in(address: str) -> str:
    """The last part of an address, as a file can be called; raises UserError if it is no address."""
    try:
        path = unquote(urlparse(address).path)
    except ValueError as error:
        raise UserError(
            f'A checkpoint is downloaded from an address, and {without_password(address)} is none ({error}). '
            'Check the address.') from None
    name = ODD_IN_NAMES.sub('_', path.rpartition('/')[2])
    return name[-LONGEST_NAME:]


def download(source: str) -> tuple[Path, bool]:
    """The local file of a URL or a hub name, and whether this call downloaded it.

    A name that ends in the first digits of a sha256, as OpenMMLab and torch name their files
    (name-60ae8e23.pth), must be that of the content, also of a file that was there. In a distributed run rank 0
    downloads first.

    Raises:
        UserError: it cannot be downloaded or has another sha256; a download then leaves nothing behind.
    """
    path, address = local_path(source), _address(source)
    if not _is_distributed():
        return path, _download_once(address, path)

    rank, fresh = torch.distributed.get_rank(), False
    try:
        if rank == 0:
            fresh = _download_once(address, path)
    finally:  # also when rank 0 fails, so that the others do not wait for ever
        torch.distributed.barrier()
    if rank > 0:
        fresh = _download_once(address, path)
    return path, fresh


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _download_once(address: str, path: Path) -> bool:
    if not address.startswith(WEB):
        return False
    shown = without_password(address)
    if path.is_file():
        _check_hash(shown, path)
        return False
    if os.path.lexists(path):
        raise UserError(
            f'{shown} is downloaded to {path}, where there is something that is no file. Remove it, or download '
            'the file and give its path.')

    _tell(f'Downloading {shown} to {path}')
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MOST_SECONDS)  # torch sets none, and would wait for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), _hash_in(path.name), progress=os.isatty(2))
    except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
        raise UserError(
            f'A checkpoint with an address is downloaded, and {shown} could not be '
            f'({without_password(reason(error))}); nothing was left in {path.parent}. Check the address and the '
            'network, or download the file and give its path.') from None
    finally:
        socket.setdefaulttimeout(before)
    return True


def _check_hash(address: str, path: Path) -> None:
    """UserError if a downloaded file has another content than the hash in its name says."""
    expected = _hash_in(path.name)
    found = sha256_of(path) if expected else ''
    if expected and not found.startswith(expected):
        raise UserError(
            f'{address} was downloaded to {path} before, and the sha256 of that file begins with '
            f'{found[:len(expected)]}, not with {expected} as its name says. It was damaged or replaced: remove it '
            'and it is downloaded again.')


def _tell(text: str) -> None:
    """In mmengine's log where there is one."""
    try:
        from mmengine.logging import MMLogger
    except ImportError:
        print(text, file=sys.stderr)
        return
    MMLogger.get_current_instance().info(text)


def _address(source: str) -> str:
    """The URL behind a hub name; a path where a hub's table of the user's own holds one."""
    scheme = source.partition('://')[0] + '://'
    if scheme in WEB:
        return source
    if scheme not in HUBS:
        raise UserError(
            f'A checkpoint is a path or has an address that starts with {", ".join(SCHEMES)}, and '
            f'{source} has another. Download the file and give its path.')

    try:
        from mmengine.runner import checkpoint as mmengine_checkpoint
        known = {name: address for name, address in HUBS[scheme]().items() if address}
    except ImportError as error:
        raise UserError(
            f'{scheme} takes its addresses from {error.name}, which is not installed. '
            f'Install it (pip install {error.name}), or give a URL or a path.') from None

    name = source.removeprefix(scheme)
    if HUBS[scheme] is external_models:
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in known:
        alike = difflib.get_close_matches(name, known, 3, 0.3) or list(known)[:3]
        raise UserError(
            f'{scheme} knows {len(known)} names, and {name!r} is none of them. '
            f'Choose one, such as {", ".join(alike)}, or give a URL or a path.')

    address = known[name]
    if is_remote(address):
        return address
    return str(Path(mmengine_checkpoint._get_mmengine_home()) / address)


def _hash_in(name: str) -> str | None:
    """The first digits of the sha256 in a file name; eight digits that are a date are none."""
    found = re.search(r'-([0-9a-f]{8,64})\.[^.]+$', name)
    if found is None or re.fullmatch(r'20\d\d[01]\d[0-3]\d', found[1]):
        return None
    return found[1]
