"""An ONNX graph as quantisation sees it: its convolutions, their constants, and who reads which value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ..engine.engine import optional

CONVOLUTION = 'Conv'
WEIGHTS, BIAS = 1, 2  # places among the inputs of a convolution


def convolutions_of(model: object) -> dict[str, object]:
    """The convolutions of an onnx.ModelProto whose weights are constants, by name, in the order of computation."""
    constants = constants_of(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == CONVOLUTION and node.input[WEIGHTS] in constants:
            found[node.name] = node
    return found


def constants_of(model: object) -> dict[str, object]:
    """The TensorProto of each constant of a graph, by the name of its value."""
    return {constant.name: constant for constant in model.graph.initializer}


def arrays_of(model: object, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Constants of these names, as arrays."""
    constants = constants_of(model)
    to_array = optional('onnx').numpy_helper.to_array
    return {name: to_array(constants[name]) for name in names}


def write_arrays(model: object, arrays: Mapping[str, np.ndarray]) -> None:
    """Let the constants of these names hold `arrays`."""
    constants = constants_of(model)
    from_array = optional('onnx').numpy_helper.from_array
    for name, array in arrays.items():
        constants[name].CopyFrom(from_array(array, name))


def producers_of(model: object) -> dict[str, object]:
    """The node that computes each value; none for constants and for inputs of the graph."""
    found = {}
    for node in model.graph.node:
        for name in node.output:
            found[name] = node
    return found


def readers_of(model: object) -> dict[str, list]:
    """The nodes that read each value, one entry for each input; None stands for an output of the graph."""
    found = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    for output in model.graph.output:
        found.setdefault(output.name, []).append(None)
    return found


def tapped(model: object, names: Sequence[str]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """image -> the values of these names in an onnx.ModelProto with one input."""
    onnx, onnxruntime = optional('onnx'), optional('onnxruntime')
    image_name = model.graph.input[0].name
    tapped = type(model)()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    wanted = [name for name in names if name != image_name]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=['CPUExecutionProvider'])

    def run(image: np.ndarray) -> list[np.ndarray]:
        values = {image_name: image}
        if wanted:
            values.update(zip(wanted, session.run(wanted, values)))
        return [values[name] for name in names]
    return run
