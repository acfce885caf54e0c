"""Networks of OpenVINO: read from an ONNX graph, written as engine.xml and engine.bin."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .engine import optional

FLOAT32 = dict(INFERENCE_PRECISION_HINT='f32')  # in int8 of what is not quantised
PROPERTIES = dict(fp32=FLOAT32, bf16=dict(INFERENCE_PRECISION_HINT='bf16'), int8=FLOAT32)  # to load an engine with


def read_openvino(content: bytes) -> object:
    """The openvino.Model of an ONNX graph; UserError if OpenVINO cannot read it."""
    try:
        return optional('openvino').Core().read_model(content)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(
            f'OpenVINO reads the exported graph, and cannot ({last}). Export with --engine onnx.') from None


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
