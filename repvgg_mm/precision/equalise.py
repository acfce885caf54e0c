"""Cross-layer equalisation: the ranges of the channels between two convolutions made alike, the network unchanged.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1. ReLU is
positively homogeneous, ReLU(y / s) = ReLU(y) / s for s > 0, so output channel c of a convolution, weights and bias,
may be divided by s_c where every convolution that reads it multiplies its input channel c by s_c. A RepVGG in deploy
form is nothing but such pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.engine import optional
from .layer_noise import biased_outputs, constant_of, convolutions_of

MOST_PASSES = 20


@dataclass
class Pair:
    """A convolution and those that read its output, nodes of an openvino.Model; `bias` is an Add, None without."""

    convolution: object
    bias: object | None
    readers: list


def equalise(network: object) -> tuple[object, list[str]]:
    """A copy of an openvino.Model with equalised channels, and the names of the convolutions that were divided.

    Where nothing but convolutions reads a convolution's output, through ReLU or directly. Weights that several
    convolutions share and grouped convolutions are left as they are. All factors are powers of two: the copy
    computes what `network` computes, bit for bit, as long as nothing leaves float32's range.
    """
    network = network.clone()
    pairs = _find_pairs(network)
    changed = set()
    for _ in range(MOST_PASSES):
        moved = [name for name, pair in pairs.items() if _equalise_pair(pair)]
        changed.update(moved)
        if not moved:
            break
    return network, [name for name in pairs if name in changed]


def scales(first: np.ndarray, bias: np.ndarray, readers: Sequence[np.ndarray]) -> np.ndarray:
    """s_c = sqrt(r_c / q_c), rounded to a power of two, of output channel c of `first` (C, ...).

    r_c is the largest weight of the channel in `first`, q_c the largest that any of `readers` (..., C, kH, kW)
    applies to it; 1 where either is 0. No bias is made larger than the largest one is.
    """
    largest = np.abs(first).reshape(len(first), -1).max(1)
    read = np.max([np.abs(weights).max((0, 2, 3)) for weights in readers], 0)
    used = (largest > 0) & (read > 0)

    exponents = np.zeros(len(first))
    ratio = largest[used].astype(np.float64) / read[used]
    exponents[used] = np.round(np.log2(ratio) / 2)

    if bias.any():
        with np.errstate(divide='ignore'):
            share = np.log2(np.abs(bias) / np.abs(bias).max())
        least = np.ceil(share)
        exponents = np.where(used, np.maximum(exponents, least), 0)
    return np.exp2(exponents).astype(np.float32)


def _find_pairs(network: object) -> dict[str, Pair]:
    """By the name of the first convolution, in the order of computation."""
    outputs = biased_outputs(network)
    found = {}
    for name, conv in convolutions_of(network).items():
        readers = _readers_through_relu(outputs[name])
        if readers and all(_owns_weights(one) for one in (conv, *readers)):
            bias = outputs[name].get_node()
            found[name] = Pair(conv, bias if bias.get_type_name() == 'Add' else None, readers)
    return found


def _readers_through_relu(output: object) -> list | None:
    """The convolutions that read `output`; None if anything else reads it."""
    readers = []
    front = [output]
    while front:
        for target in front.pop().get_target_inputs():
            node = target.get_node()
            if node.get_type_name() == 'Relu':
                front.append(node.output(0))
            elif node.get_type_name() == 'Convolution':
                readers.append(node)
            else:
                return None
    return readers


def _equalise_pair(pair: Pair) -> bool:
    """Whether any channel was changed."""
    first = constant_of(pair.convolution, 1)
    readers = [constant_of(reader, 1) for reader in pair.readers]
    place, bias = None, np.zeros(len(first), np.float32)
    if pair.bias is not None:
        place = _bias_input(pair)
        bias = constant_of(pair.bias, place)

    s = scales(first, bias.reshape(-1), readers)
    if (s == 1).all():
        return False

    s = s[:, None, None]                                                 # C, 1, 1
    _replace(pair.convolution, 1, first / s[..., None])
    if place is not None:
        _replace(pair.bias, place, bias.reshape(1, -1, 1, 1) / s)
    for reader, weights in zip(pair.readers, readers):
        _replace(reader, 1, weights * s)
    return True


def _owns_weights(conv: object) -> bool:
    """Whether `conv` is a plain convolution whose weights are a constant that nothing else reads."""
    weights = conv.input_value(1)
    constant = weights.get_node().get_type_name() == 'Constant'
    return conv.get_type_name() == 'Convolution' and constant and len(weights.get_target_inputs()) == 1


def _bias_input(pair: Pair) -> int:
    """Which input of the Add the bias is: the one that is not the convolution."""
    names = [pair.bias.input_value(i).get_node().get_name() for i in (0, 1)]
    return 1 - names.index(pair.convolution.get_name())


def _replace(node: object, place: int, values: np.ndarray) -> None:
    """Let a constant of `values` be that input of `node`."""
    content = np.ascontiguousarray(values, dtype=np.float32)
    constant = optional('openvino').op.Constant(content)
    node.input(place).replace_source_output(constant.output(0))
