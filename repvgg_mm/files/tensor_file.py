"""`.safetensors` files, with the checksum that the format itself lacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import UserError

HEADER_BYTES = 8  # the length of the header, little-endian


def is_tensor_file(path: Path) -> bool:
    """Whether a file is in the safetensors format: the length of its header, then a JSON object."""
    with open(path, 'rb') as file:
        start = file.read(HEADER_BYTES + 1)
    length = int.from_bytes(start[:HEADER_BYTES], 'little')
    return start[HEADER_BYTES:] == b'{' and length <= path.stat().st_size


def read_tensor_file(path: Path, device: str | torch.device) -> dict:
    """`dict(state_dict=..., meta=...)` of a `.safetensors` file; `meta` is its metadata entry of that name.

    Raises:
        UserError: safetensors is not installed.
        SafetensorError, ValueError: the file is damaged, or its tensors do not have the checksum in it.
    """
    safetensors = _safetensors()
    tensors = {}
    with safetensors.safe_open(path, framework='pt') as file:
        metadata = file.metadata() or {}
        for name in file.keys():
            tensors[name] = file.get_tensor(name).clone()  # the file may change later

    meta = metadata.get('meta', '{}')
    if 'sha256' in metadata and metadata['sha256'] != checksum(tensors, meta):
        raise ValueError('its content does not have the sha256 that is stored in it')

    meta = json.loads(meta)
    if not isinstance(meta, dict):
        raise ValueError(f"its metadata entry 'meta' is a {type(meta).__name__}, not a dict")

    state_dict = {name: tensor.to(device) for name, tensor in tensors.items()}
    return dict(state_dict=state_dict, meta=meta)


def write_tensor_file(path: str | PathLike, checkpoint: Mapping) -> None:
    """Write `state_dict` and `meta` of a checkpoint, or a dict of tensors, with a checksum of both.

    Raises:
        UserError: safetensors is not installed, there is something else in the checkpoint, or `meta` is not made of
            what JSON has.
        OSError: the file cannot be written.
    """
    safetensors = _safetensors()
    state_dict, meta = _parts(checkpoint)
    tensors = _without_shared_memory(state_dict)
    metadata = dict(format='pt', meta=meta, sha256=checksum(tensors, meta))

    content = safetensors.torch.save(tensors, metadata)  # save_file would leave temporary files of its own
    Path(path).write_bytes(content)


def _safetensors() -> ModuleType:
    """The package that reads and writes the format, or UserError with the command that installs it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(
            f'Files in .safetensors need the package safetensors, which cannot be imported ({error}). '
            'Install it: pip install safetensors.') from None
    return safetensors


def checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    """sha256 of everything that a reader sees: names, types, shapes and `meta`, then the bytes of each tensor."""
    names = sorted(tensors)
    table = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    head = json.dumps([meta, table])

    digest = hashlib.sha256(head.encode())
    for name in names:
        flat = tensors[name].reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _parts(checkpoint: Mapping) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a checkpoint, and its `meta` as JSON."""
    state_dict, meta, other = checkpoint, None, []
    if isinstance(checkpoint.get('state_dict'), Mapping):
        state_dict, meta = checkpoint['state_dict'], checkpoint.get('meta')
        other += [key for key in checkpoint if key not in ('state_dict', 'meta')]

    other += [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if other:
        raise UserError(
            f'A .safetensors file holds tensors and meta, and this checkpoint has also {other[:5]}. '
            'Write it as .pth, or leave them out.')

    try:
        return state_dict, json.dumps(meta or {})
    except (TypeError, ValueError) as error:
        raise UserError(
            f'In a .safetensors file meta is JSON, and this one is not ({error}). '
            'Write it as .pth, or leave that entry out.') from None


def _without_shared_memory(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, a copy for each that shares memory with one before it."""
    tensors, seen = {}, set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return tensors
