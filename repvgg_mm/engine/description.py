"""The files of an engine, written: an OpenVINO network, and the description with the sha256 of each file."""

from __future__ import annotations

import json
from pathlib import Path

from ..files.atomic import sha256_of
from .engine import optional


def save_openvino(network: object, path: Path) -> None:
    """Write an openvino.Model with its weights as they are; OSError if the folder is full.

    Files of that name are replaced rather than written into: an engine in use has them mapped.
    """
    for file in (path, path.with_suffix('.bin')):
        file.unlink(missing_ok=True)
    try:
        optional('openvino').save_model(network, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(str(error).strip()) from None


def write_meta(path: Path, meta: dict) -> None:
    """Describe the engine at `path` and its weights beside it, with the sha256 of each file, in a .json beside it."""
    files = [file for file in (path, path.with_suffix('.bin')) if file.is_file()]
    meta['files'] = {file.name: sha256_of(file) for file in files}
    path.with_suffix('.json').write_text(json.dumps(meta, indent=2) + '\n')
