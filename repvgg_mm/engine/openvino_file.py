"""OpenVINO: its one Core, and networks read from an ONNX graph, written as engine.xml and engine.bin."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from ..errors import UserError
from .packages import optional

FLOAT32 = dict(INFERENCE_PRECISION_HINT='f32')  # in int8 of what is not quantised
PROPERTIES = dict(fp32=FLOAT32, bf16=dict(INFERENCE_PRECISION_HINT='bf16'), int8=FLOAT32)  # to load an engine with


def openvino_core() -> object:
    """The openvino.Core of this process, kept to its end; UserError without OpenVINO.

    A Core's plugin for CPUs gives the thread a stack for signal handlers, and takes it back with the Core. Two Cores
    that end in the order in which they began leave a stack that is freed: the next signal with a handler, such as that
    of a data loader whose worker ends, then ends the process (seen with OpenVINO 2026.4).
    """
    return _core_of(optional('openvino'))


@cache
def _core_of(openvino: ModuleType) -> object:
    return openvino.Core()


def read_openvino(content: bytes) -> object:
    """The openvino.Model of an ONNX graph; UserError if OpenVINO cannot read it."""
    try:
        return openvino_core().read_model(content)
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
