"""The files of an engine, written from its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..engine.description import Description, write_description
from ..engine.engine import optional
from ..engine.openvino_file import PROPERTIES, read_openvino, save_openvino

STEM = 'engine'


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
