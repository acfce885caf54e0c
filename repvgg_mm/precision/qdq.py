"""Quantising the convolutions of an ONNX graph: QuantizeLinear and DequantizeLinear (Q/DQ) before each of them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..engine.engine import optional
from ..errors import UserError
from .graph import CONVOLUTION, WEIGHTS, constants_of, convolutions_of, producers_of, readers_of

QUANTISE, DEQUANTISE = 'QuantizeLinear', 'DequantizeLinear'
SCALE, ZERO_POINT = 1, 2  # places among the inputs of both
SYMMETRIC = dict(  # options of ONNX Runtime's quantiser; TensorRT adds biases in float32
    ActivationSymmetric=True,
    WeightSymmetric=True,
    QuantizeBias=False,
    OpTypesToExcludeOutputQuantization=[CONVOLUTION])


def quantise_symmetric(model: object, images: Sequence[np.ndarray], kept: Collection[str] = ()) -> object:
    """A copy of an onnx.ModelProto in int8 as TensorRT takes it, by ONNX Runtime's quantiser.

    Weights by output channel, activations by tensor, from the smallest to the largest value seen, all around zero.
    """
    onnx = optional('onnx')
    quantiser = optional('onnxruntime.quantization')
    utilities = optional('onnxruntime.quantization.quant_utils')

    chosen = _quantised(model, kept)
    prepared = type(model)()
    prepared.CopyFrom(model)
    utilities.add_pre_process_metadata(prepared)  # or it warns that the graph could be optimised, which torch has done
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'quantised.onnx'
        quantiser.quantize_static(
            prepared,
            path,
            _Reader(model.graph.input[0].name, images),
            quant_format=quantiser.QuantFormat.QDQ,
            per_channel=True,
            nodes_to_quantize=chosen,
            extra_options=SYMMETRIC)
        quantised = onnx.load(path)
    del quantised.metadata_props[:]
    _leave_others(quantised, model, chosen)
    return quantised


def quantise_for_cpu(model: object, images: Sequence[np.ndarray], kept: Collection[str] = ()) -> object:
    """A copy of an onnx.ModelProto in int8 by NNCF's defaults, with activations in uint8 where none is negative."""
    nncf = optional('nncf')
    nncf.set_log_level(logging.ERROR)
    chosen = _quantised(model, kept)
    others = [node.name for node in model.graph.node if node.name not in chosen]
    name = model.graph.input[0].name
    return nncf.quantize(
        model,
        nncf.Dataset([{name: image} for image in images]),
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=others, validate=False))


def check_qdq(model: object, quantised: Collection[str]) -> None:
    """UserError unless `model` is quantised as TensorRT takes it: exactly the convolutions of these names.

    Each reads an activation in int8 with one scale, and weights in int8 with a scale for each output channel, all
    with the zero point 0. Nothing else reads what is dequantised: there is no pair between a convolution and its ReLU,
    nor after the last convolutions.
    """
    constants, producers, readers = constants_of(model), producers_of(model), readers_of(model)

    for node in model.graph.node:
        if node.op_type not in (QUANTISE, DEQUANTISE):
            continue
        for reader in readers.get(node.output[0], []):
            expected = DEQUANTISE if node.op_type == QUANTISE else CONVOLUTION
            if reader is None or reader.op_type != expected:
                raise _broken(f'{node.name} is read by {"an output" if reader is None else reader.name}')

    for node in model.graph.node:
        if node.op_type != CONVOLUTION:
            continue
        pairs = [producers.get(name) for name in node.input[:WEIGHTS + 1]]
        count = sum(pair is not None and pair.op_type == DEQUANTISE for pair in pairs)
        if count != (2 if node.name in quantised else 0):
            raise _broken(f'{node.name} reads {count} values that are dequantised')
        if count:
            activation, weights = pairs
            _check_pair(activation, constants, producers, channels=1)
            stored = constants.get(weights.input[0])
            channels = 0 if stored is None else stored.dims[0]
            _check_pair(weights, constants, producers, channels)


class _Reader:
    """An onnxruntime CalibrationDataReader."""

    def __init__(self, name: str, images: Sequence[np.ndarray]) -> None:
        self.name = name
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image}


def _quantised(model: object, kept: Collection[str]) -> list[str]:
    return [name for name in convolutions_of(model) if name not in kept]


def _leave_others(quantised: object, model: object, chosen: Collection[str]) -> None:
    """Let all nodes but those `chosen` read what they read in `model`; ONNX Runtime lets all readers read a pair."""
    before = {node.name: node for node in model.graph.node}
    needed = set()
    for node in quantised.graph.node:
        if node.name in before and node.name not in chosen:
            node.input[:] = before[node.name].input
            needed.update(node.input)

    present = constants_of(quantised)
    for name, constant in constants_of(model).items():
        if name in needed and name not in present:
            quantised.graph.initializer.append(constant)


def _check_pair(node: object, constants: Mapping, producers: Mapping, channels: int) -> None:
    """Of a DequantizeLinear and the QuantizeLinear before it, if there is one."""
    to_array = optional('onnx').numpy_helper.to_array
    before = producers.get(node.input[0])
    for one in (node,) if before is None else (node, before):
        parts = [to_array(constants[name]) for name in one.input[SCALE:] if name in constants]
        if len(parts) != ZERO_POINT:
            raise _broken(f'{one.name} has no constant scale and zero point')
        scale, zero_point = parts
        if scale.size != channels:
            raise _broken(f'{one.name} has {scale.size} scales instead of {channels}')
        if zero_point.dtype != np.int8 or zero_point.any():
            raise _broken(f'{one.name} has zero points of {zero_point.dtype}, up to {np.abs(zero_point).max()}')


def _broken(found: str) -> UserError:
    return UserError(
        'A graph in int8 has Q/DQ before its convolutions alone, in int8 with the zero point 0, and in this one '
        f'{found}. Nothing was written: use --engine openvino, or --precision fp16, and report this.')
