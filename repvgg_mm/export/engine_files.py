"""The files of an engine, written from its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..engine.description import Description, write_description
from ..engine.engine import optional
from ..errors import UserError

STEM = 'engine'
FLOAT32 = dict(INFERENCE_PRECISION_HINT='f32')  # in int8 of what is not quantised
PROPERTIES = dict(fp32=FLOAT32, bf16=dict(INFERENCE_PRECISION_HINT='bf16'), int8=FLOAT32)  # of OpenVINO


def write_engine(graph: object, description: Description, folder: Path) -> tuple[Path, Description]:
    """Write the engine of an onnx.ModelProto and its description into `folder`.

    Returns the engine's path, and the description with versions, properties and files.

    Raises:
        UserError: OpenVINO cannot read the graph.
    """
    content = graph.SerializeToString()
    versions = description.versions | dict(onnx=optional('onnx').__version__)
    properties = {}

    if description.engine == 'onnx':
        path = folder / f'{STEM}.onnx'
        path.write_bytes(content)
    else:
        versions['openvino'] = optional('openvino').__version__
        properties = PROPERTIES[description.precision]
        path = folder / f'{STEM}.xml'
        save_openvino(read_openvino(content), path)

    described = replace(description, versions=versions, openvino_properties=properties)
    return path, write_description(path, described)


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
