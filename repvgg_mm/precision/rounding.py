"""Rounding weights to int8 so that what a convolution computes of real images changes least.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, ICLR 2023 (arXiv
2210.17323), section 3, for convolutions. A fused RepVGG kernel holds the identity branch: one weight of a channel is
far above the others, and sets the step to which they are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .graph import WEIGHTS, arrays_of, convolutions_of, tapped, write_arrays

LEVELS = 127  # of int8 on each side of zero
DAMPING = 0.01  # share of the mean diagonal that is added to it, as in the paper
MOST_WEIGHTS = 8192  # of a channel; with more, its matrices take above 2 GB
MOST_IMAGES = 32
MOST_POSITIONS = 600  # of a call's maps, evenly spaced
MOST_BYTES = 2 ** 30  # of the matrices that are summed at a time
Progress = Callable[[str], None]


def round_weights(
    model: object, images: Sequence[np.ndarray], kept: Collection[str] = (), progress: Progress = lambda text: None
) -> object:
    """A copy of an onnx.ModelProto whose weights are whole multiples of a step, max|w| / 127, by output channel.

    A quantiser that takes the largest weight of each channel for its range leaves them as they are. At most 32 of the
    `images`, each what the graph takes at a call, are used, evenly spaced. Left as they are: the convolutions named in
    `kept`, and channels of more than 8192 weights.
    """
    every = -(-len(images) // MOST_IMAGES)
    readers = {}
    for name, conv in convolutions_of(model).items():
        if name not in kept:
            readers.setdefault(conv.input[WEIGHTS], []).append(conv)
    shapes = {name: weights.shape for name, weights in arrays_of(model, readers).items()}
    chosen = [name for name, shape in shapes.items() if len(shape) == 4 and math.prod(shape[1:]) <= MOST_WEIGHTS]

    copy = type(model)()
    copy.CopyFrom(model)
    rounded = 0
    for names in _batches(chosen, shapes):
        progress(f'Rounding weights, {rounded} of {len(chosen)} done')
        products = _products(model, {name: readers[name] for name in names}, shapes, images[::every])
        for name, weights in arrays_of(model, names).items():
            weights = torch.from_numpy(weights.astype(np.float64))
            write_arrays(copy, {name: _round_groups(weights, products.pop(name)).float().numpy()})
        rounded += len(names)
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


def _batches(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """Neighbours together, as long as their matrices take no more than `MOST_BYTES`."""
    batches, filled = [], math.inf
    for name in names:
        size = math.prod(shapes[name][1:]) ** 2 * np.dtype(np.float64).itemsize
        filled += size
        if filled > MOST_BYTES:
            batches.append([])
            filled = size
        batches[-1].append(name)
    return batches


def _products(
    model: object,
    readers: Mapping[str, Sequence[object]],
    shapes: Mapping[str, tuple[int, ...]],
    images: Sequence[np.ndarray],
) -> dict[str, Tensor]:
    """X X^T (G, K, K) of what the `readers` of each weights read, over all images and positions."""
    pairs = [(name, conv) for name, convs in readers.items() for conv in convs]
    run = tapped(model, [conv.input[0] for _, conv in pairs])
    total = dict.fromkeys(readers, 0)
    for image in images:
        for (name, conv), value in zip(pairs, run(image)):
            columns = _columns(conv, torch.from_numpy(value), shapes[name][2:])
            total[name] = total[name] + (columns @ columns.mT).double()
    return total


def _columns(conv: object, value: Tensor, kernel: tuple[int, int]) -> Tensor:
    """What an output position of each group is computed of, (G, K, positions)."""
    settings = {attribute.name: attribute.i or list(attribute.ints) for attribute in conv.attribute}
    top, left, bottom, right = settings.get('pads') or [0] * 4
    padded = F.pad(value, (left, right, top, bottom))
    columns = F.unfold(padded, kernel, dilation=settings.get('dilations', 1), stride=settings.get('strides', 1))

    of_all_images = columns.transpose(0, 1).flatten(1)
    grouped = of_all_images.unflatten(0, (settings.get('group', 1), -1))
    every = -(-grouped.shape[-1] // MOST_POSITIONS)
    return grouped[..., ::every]
