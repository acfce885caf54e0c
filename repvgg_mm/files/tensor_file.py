"""`.safetensors` files, with the checksum that the format itself lacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import UserError


def is_tensor_file(path: Path) -> bool:
    """Whether a file is in the safetensors format: the length of its header, then a JSON object."""
    with open(path, 'rb') as file:
        start = file.read(9)
    return start[8:] == b'{' and int.from_bytes(start[:8], 'little') <= path.stat().st_size


def read_tensor_file(path: Path, device: str | torch.device) -> dict:
    """`dict(state_dict=..., meta=...)` of a `.safetensors` file; `meta` is its metadata entry of that name.

    Raises:
        SafetensorError, ValueError: the file is damaged, or its tensors do not have the checksum in it.
    """
    with safe_open(path, framework='pt') as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # the file may change later
    meta = metadata.get('meta', '{}')
    if 'sha256' in metadata and metadata['sha256'] != checksum(tensors, meta):
        raise ValueError('its content does not have the sha256 that is stored in it')
    meta = json.loads(meta)
    if not isinstance(meta, dict):
        raise ValueError(f"its metadata entry 'meta' is a {type(meta).__name__}, not a dict")
    return dict(state_dict={name: tensor.to(device) for name, tensor in tensors.items()}, meta=meta)


def write_tensor_file(path: str | PathLike, checkpoint: Mapping) -> None:
    """Write `state_dict` and `meta` of a checkpoint, or a dict of tensors, with a checksum of both.

    Raises:
        UserError: there is something else in the checkpoint, or `meta` is not made of what JSON has.
        OSError: the file cannot be written.
    """
    state_dict, meta = _parts(checkpoint)
    tensors = _without_shared_memory(state_dict)
    metadata = dict(format='pt', meta=meta, sha256=checksum(tensors, meta))
    Path(path).write_bytes(save(tensors, metadata))  # save_file would leave temporary files of its own


def checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    """sha256 of everything that a reader sees: names, types, shapes and `meta`, then the bytes of each tensor."""
    names = sorted(tensors)
    table = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([meta, table]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _parts(checkpoint: Mapping) -> tuple[Mapping[str, Tensor], str]:
    other = {}
    state_dict = checkpoint
    if isinstance(checkpoint.get('state_dict'), Mapping):
        state_dict = checkpoint['state_dict']
        other = {key: value for key, value in checkpoint.items() if key not in ('state_dict', 'meta')}
    other.update({key: value for key, value in state_dict.items() if not isinstance(value, Tensor)})
    if other:
        raise UserError(f'A .safetensors file holds tensors and meta, and this checkpoint has also {list(other)[:5]}. '
                        'Write it as .pth, or leave them out.')
    meta = checkpoint.get('meta') if state_dict is not checkpoint else None
    try:
        return state_dict, json.dumps(meta or {})
    except (TypeError, ValueError) as error:
        raise UserError(f'In a .safetensors file meta is JSON, and this one is not ({error}). '
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
