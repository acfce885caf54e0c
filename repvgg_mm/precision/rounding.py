"""Rounding weights to int8 so that what a convolution computes of real images changes least.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, ICLR 2023 (arXiv
2210.17323), section 3, for convolutions. A fused RepVGG kernel holds the identity branch: one weight of a channel is
far above the others, and sets the step to which they are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..engine.engine import optional
from .graph import WEIGHTS, arrays_of, convolutions_of, readers_of, tapped, write_arrays

LEVELS = 127  # of int8 on each side of zero
DAMPING = 0.01  # share of the mean diagonal that is added to it, as in the paper
MOST_WEIGHTS = 8192  # of a channel; with more, its matrices take above 2 GB
MOST_IMAGES = 32
MOST_POSITIONS = 600  # of a convolution at a call
MOST_BYTES = 2 ** 30  # of the matrices that are summed at a time
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Weights:
    """Weights (C, ...), and the convolutions that read them and are to be rounded for."""

    name: str
    shape: tuple[int, ...]
    readers: list

    @property
    def inputs(self) -> int:
        """K, the weights of a channel."""
        return math.prod(self.shape[1:])

    @property
    def groups(self) -> int:
        return _settings(self.readers[0]).get('group', 1)

    @property
    def nbytes(self) -> int:
        """Of the matrices (G, K, K) in float64."""
        return 8 * self.groups * self.inputs ** 2


def round_weights(
    model: object, images: Sequence[np.ndarray], kept: Collection[str] = (), progress: Progress = lambda text: None
) -> object:
    """A copy of an onnx.ModelProto whose weights are whole multiples of a step, max|w| / 127, by output channel.

    A quantiser that takes the largest weight of each channel for its range leaves them as they are. At most 32 of the
    `images`, each what the graph takes at a call, are used, evenly spaced. Left as they are: the convolutions named in
    `kept`, channels of more than 8192 weights, and convolutions that read numbers that are not finite.
    """
    every = -(-len(images) // MOST_IMAGES)
    copy = type(model)()
    copy.CopyFrom(model)

    rounded, all_weights = 0, _weights_of(model, kept)
    for batch in _batches(all_weights):
        progress(f'Rounding weights, {rounded} of {len(all_weights)} done')
        products = _products(model, batch, images[::every])
        for weights in batch:
            own = products.pop(weights.name)
            if own.isfinite().all():
                given = torch.from_numpy(arrays_of(model, [weights.name])[weights.name].astype(np.float64))
                _replace(copy, weights, _round_groups(given, own).float().numpy())
        rounded += len(batch)
    return copy


def round_channels(weights: Tensor, products: Tensor) -> Tensor:
    """Weights (C, K) in float64 rounded to multiples of max|w| / 127 by channel, for inputs X (K, L) of X X^T (K, K).

    Least of ||(w - q) X||^2, one weight after the other: with U^T U = (X X^T)^-1, U upper triangular, the error of
    weight j is taken off those after it, w_k -= (w_j - q_j) U_jk / U_jj. Those with the largest inputs come first. The
    largest weight of a channel, which sets the step, stays as it is.
    """
    largest, place = weights.abs().max(1)
    step = torch.where(largest > 0, largest, 1) / LEVELS

    order = products.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(products[order][:, order])
    place = order.argsort()[place]
    given = weights.T[order]                                             # K, C
    left = given.clone()
    rounded = torch.empty_like(left)

    for j, row in enumerate(factor):
        chosen = torch.where(place == j, given[j], left[j])
        rounded[j] = (chosen / step).round().clamp(-LEVELS, LEVELS) * step
        error = (left[j] - rounded[j]) / row[j]
        left[j + 1:].addr_(row[j + 1:], error, alpha=-1)

    return rounded[order.argsort()].T


def _inverse_factor(products: Tensor) -> Tensor:
    """Upper triangular U with U^T U = products^-1, after damping."""
    damping = DAMPING * products.diagonal().mean().clamp(min=torch.finfo(products.dtype).tiny)
    damped = products + damping * torch.eye(len(products), dtype=products.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _round_groups(weights: Tensor, products: Tensor) -> Tensor:
    """Of weights (C, ...) in as many groups as there are `products` (G, K, K)."""
    by_group = weights.flatten(1).chunk(len(products))
    rounded = [round_channels(own, of) for own, of in zip(by_group, products)]
    return torch.cat(rounded).reshape(weights.shape)


def _weights_of(model: object, kept: Collection[str]) -> list[Weights]:
    """What is to be rounded, in the order of computation."""
    readers = {}
    for name, conv in convolutions_of(model).items():
        if name not in kept:
            readers.setdefault(conv.input[WEIGHTS], []).append(conv)

    found = [Weights(name, array.shape, readers[name]) for name, array in arrays_of(model, readers).items()]
    return [weights for weights in found if len(weights.shape) == 4 and weights.inputs <= MOST_WEIGHTS]


def _batches(all_weights: Sequence[Weights]) -> list[list[Weights]]:
    """Neighbours together, as long as their matrices take no more than `MOST_BYTES`."""
    batches, filled = [], math.inf
    for weights in all_weights:
        filled += weights.nbytes
        if filled > MOST_BYTES:
            batches.append([])
            filled = weights.nbytes
        batches[-1].append(weights)
    return batches


def _products(model: object, batch: Sequence[Weights], images: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """By the name of weights, X X^T (G, K, K) of what their readers read, over all images and some positions."""
    pairs = [(weights, conv) for weights in batch for conv in weights.readers]
    run = tapped(model, [conv.input[0] for _, conv in pairs])
    generator = torch.Generator().manual_seed(0)
    total = {weights.name: 0 for weights in batch}
    for image in images:
        for (weights, conv), value in zip(pairs, run(image)):
            columns = _columns(conv, torch.from_numpy(value), weights.shape[2:], generator).double()
            total[weights.name] = total[weights.name] + columns @ columns.mT
    return total


def _columns(conv: object, value: Tensor, kernel: Sequence[int], generator: torch.Generator) -> Tensor:
    """What output positions are computed of, (G, K, positions): at most `MOST_POSITIONS`, drawn at random."""
    settings = _settings(conv)
    top, left, bottom, right = settings.get('pads', [0] * 4)
    windows = F.pad(value, (left, right, top, bottom))                   # N, C, H, W
    strides, dilations = settings.get('strides', (1, 1)), settings.get('dilations', (1, 1))
    for axis, size, stride, dilation in zip((2, 3), kernel, strides, dilations):
        windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]

    number, _, height, width = windows.shape[:4]                         # of N, C, rows, columns, kH, kW: no copy yet
    drawn = torch.randperm(number * height * width, generator=generator)[:MOST_POSITIONS]
    image, row, column = np.unravel_index(drawn.numpy(), (number, height, width))
    chosen = windows[image, :, row, column]                              # positions, C, kH, kW
    return chosen.flatten(1).unflatten(1, (settings.get('group', 1), -1)).permute(1, 2, 0)


def _settings(conv: object) -> dict[str, int | list[int]]:
    """Attributes of a convolution that are whole numbers."""
    return {attribute.name: attribute.i or list(attribute.ints) for attribute in conv.attribute}


def _replace(model: object, weights: Weights, array: np.ndarray) -> None:
    """Let the readers of `weights` read `array`; others that read the same constant go on reading what it was."""
    names = {conv.name for conv in weights.readers}
    others = [node for node in readers_of(model)[weights.name] if node is None or node.name not in names]
    if not others:
        write_arrays(model, {weights.name: array})
        return

    rounded = f'{weights.name}_rounded'
    model.graph.initializer.append(optional('onnx').numpy_helper.from_array(array, rounded))
    for conv in convolutions_of(model).values():
        if conv.name in names:
            conv.input[WEIGHTS] = rounded
