"""Cross-layer equalisation: the ranges of the channels between two convolutions made alike, the network unchanged.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1. ReLU is
positively homogeneous, ReLU(y / s) = ReLU(y) / s for s > 0, so output channel c of a convolution, weights and bias,
may be divided by s_c where every convolution that reads it multiplies its input channel c by s_c. A RepVGG in deploy
form is nothing but such pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import BIAS, WEIGHTS, arrays_of, constants_of, convolutions_of, readers_of, write_arrays

MOST_PASSES = 20


@dataclass
class Pair:
    """The names of the constants of a convolution and of those that read its output; `bias` is None without."""

    weights: str
    bias: str | None
    readers: list[str]

    @property
    def constants(self) -> list[str]:
        own = [self.weights] if self.bias is None else [self.weights, self.bias]
        return own + self.readers


def equalise(model: object) -> tuple[object, list[str]]:
    """A copy of an onnx.ModelProto with equalised channels, and the names of the convolutions that were divided.

    Where nothing but convolutions reads a convolution's output, through ReLU or directly. Constants that several
    nodes share and grouped convolutions are left as they are. All factors are powers of two: the copy computes what
    `model` computes, bit for bit, as long as nothing leaves float32's range.
    """
    equal = type(model)()
    equal.CopyFrom(model)
    pairs = _find_pairs(equal)
    names = {name for pair in pairs.values() for name in pair.constants}
    arrays = arrays_of(equal, sorted(names))

    changed = set()
    for _ in range(MOST_PASSES):
        moved = [name for name, pair in pairs.items() if _equalise_pair(pair, arrays)]
        changed.update(moved)
        if not moved:
            break
    write_arrays(equal, arrays)
    return equal, [name for name in pairs if name in changed]


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


def _find_pairs(model: object) -> dict[str, Pair]:
    """By the name of the first convolution, in the order of computation."""
    constants, all_readers = constants_of(model), readers_of(model)

    def owns_constants(conv: object) -> bool:
        """Whether `conv` is a plain convolution whose weights and bias nothing else reads."""
        grouped = any(attribute.name == 'group' and attribute.i > 1 for attribute in conv.attribute)
        own = [name in constants and len(all_readers[name]) == 1 for name in conv.input[WEIGHTS:]]
        return not grouped and all(own)

    found = {}
    for name, conv in convolutions_of(model).items():
        readers = _readers_through_relu(conv, all_readers)
        if readers and all(map(owns_constants, [conv, *readers])):
            bias = conv.input[BIAS] if len(conv.input) > BIAS else None
            found[name] = Pair(conv.input[WEIGHTS], bias, [reader.input[WEIGHTS] for reader in readers])
    return found


def _readers_through_relu(conv: object, all_readers: Mapping[str, list]) -> list | None:
    """The convolutions that read the output of `conv`; None if anything else reads it."""
    readers = []
    front = [conv.output[0]]
    while front:
        for node in all_readers.get(front.pop(), []):
            if node is None or node.op_type not in ('Relu', 'Conv'):
                return None
            if node.op_type == 'Relu':
                front.append(node.output[0])
            else:
                readers.append(node)
    return readers


def _equalise_pair(pair: Pair, arrays: dict[str, np.ndarray]) -> bool:
    """Whether any channel was changed."""
    first = arrays[pair.weights]
    bias = np.zeros(len(first), np.float32) if pair.bias is None else arrays[pair.bias]
    s = scales(first, bias, [arrays[name] for name in pair.readers])
    if (s == 1).all():
        return False

    by_channel = s[:, None, None]                                        # C, 1, 1
    arrays[pair.weights] = first / by_channel[..., None]
    if pair.bias is not None:
        arrays[pair.bias] = bias / s
    for name in pair.readers:
        arrays[name] = arrays[name] * by_channel
    return True
