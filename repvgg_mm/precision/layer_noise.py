"""What quantisation does to each convolution of an ONNX graph: ranges, and signal to noise on real images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import WEIGHTS, arrays_of, convolutions_of, tapped

TINY = 1e-30  # instead of dividing by nothing
HEADS = ('largest weight', 'over median', 'output from', 'to', 'SNR, dB', 'own, dB')


@dataclass(frozen=True)
class LayerNoise:
    """One convolution with its bias, before the activation.

    Weights by output channel: `largest_weight` is the largest magnitude, `weight_spread` that over the
    median of the channels' largest. `low` and `high` are of the output in float32. `snr_db` is the signal to
    noise of that output with everything before it quantised as well; `own_snr_db` counts only the noise that
    this layer adds: N/S of the output minus N/S of the input.
    """

    name: str
    largest_weight: float
    weight_spread: float
    low: float
    high: float
    snr_db: float
    own_snr_db: float


def signal_to_noise(signal: float, noise: float) -> float:
    """10 log10(signal / noise) in decibels, of sums of squares; inf without noise."""
    if noise <= 0:
        return float('inf')
    if not signal:
        return float('-inf')
    return float(10 * np.log10(signal / noise))


def measure_layers(model: object, quantised: object, images: Iterable[np.ndarray]) -> list[LayerNoise]:
    """Every convolution of the onnx.ModelProto `model` in its order, compared with `quantised` on `images`.

    `quantised` is what was made of `model`: values of the same names, with Q/DQ between them. Both run in ONNX Runtime.
    """
    convolutions = convolutions_of(model)
    inputs = [conv.input[0] for conv in convolutions.values()]
    outputs = [conv.output[0] for conv in convolutions.values()]
    names = list(dict.fromkeys(inputs + outputs))
    run, run_quantised = tapped(model, names), tapped(quantised, names)

    powers = {name: np.zeros(2) for name in names}  # signal and noise
    low, high = ({name: [] for name in names} for _ in range(2))
    for image in images:
        for name, expected, found in zip(names, run(image), run_quantised(image)):
            low[name].append(expected.min())
            high[name].append(expected.max())
            expected = expected.astype(np.float64)
            powers[name] += (expected ** 2).sum(), ((found - expected) ** 2).sum()

    weights = arrays_of(model, [conv.input[WEIGHTS] for conv in convolutions.values()])
    layers = []
    for name, conv in convolutions.items():
        before, after = conv.input[0], conv.output[0]
        largest = channel_maxima(weights[conv.input[WEIGHTS]])
        signal, noise = powers[after]
        own = _ratio(*powers[after]) - _ratio(*powers[before]) if signal else 0
        layers.append(LayerNoise(
            name=name,
            largest_weight=float(largest.max()),
            weight_spread=float(largest.max() / max(np.median(largest), TINY)),
            low=float(min(low[after])),
            high=float(max(high[after])),
            snr_db=signal_to_noise(signal, noise),
            own_snr_db=signal_to_noise(1, own)))
    return layers


def channel_maxima(weights: np.ndarray) -> np.ndarray:
    """Largest magnitude of the weights (C, ...) of each output channel."""
    return np.abs(weights).reshape(len(weights), -1).max(1)


def layer_table(layers: Sequence[LayerNoise], others: Mapping[str, LayerNoise] | None = None) -> str:
    """A line for each layer; a further column with the signal to noise of the layers of the same name in `others`."""
    heads = [*HEADS, 'before'] if others else HEADS
    width = max(len(layer.name) for layer in layers)
    lines = [_line('layer', heads, width)]
    for layer in layers:
        values = [
            f'{layer.largest_weight:.3f}',
            f'{layer.weight_spread:.1f}',
            f'{layer.low:.2f}',
            f'{layer.high:.2f}',
            f'{layer.snr_db:.1f}',
            f'{layer.own_snr_db:.1f}',
        ]
        if others:
            values.append(f'{others[layer.name].snr_db:.1f}')
        lines.append(_line(layer.name, values, width))
    return '\n'.join(lines)


def _line(name: str, values: Sequence[str], width: int) -> str:
    columns = [f'{value:>14}' for value in values]
    return ' '.join([f'{name:<{width}}', *columns])


def _ratio(signal: float, noise: float) -> float:
    return noise / signal if signal else 0
