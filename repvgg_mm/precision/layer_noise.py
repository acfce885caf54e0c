"""What quantisation does to each convolution of an OpenVINO network: ranges, and signal to noise on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.engine import optional

CONVOLUTIONS = ('Convolution', 'GroupConvolution')
BIAS = '/WithoutBiases'  # OpenVINO's name for a convolution whose bias is an Add after it
F32 = dict(INFERENCE_PRECISION_HINT='f32')
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


def measure_layers(network: object, quantised: object, images: Iterable[np.ndarray]) -> list[LayerNoise]:
    """Every convolution of the openvino.Model `network` in its order, compared with `quantised` on `images`.

    `quantised` is what NNCF made of `network`: nodes of the same names.
    """
    convolutions = convolutions_of(network)
    names = list(convolutions)
    run = _tapped(network, _taps(network, names))
    run_quantised = _tapped(quantised, _taps(quantised, names))

    powers = np.zeros((2, len(names), 2))  # of inputs and of outputs: signal and noise
    low = np.full(len(names), np.inf)
    high = np.full(len(names), -np.inf)
    for image in images:
        values = zip(run(image), run_quantised(image))
        for i, (expected, found) in enumerate(values):
            side, layer = divmod(i, len(names))  # inputs first, then outputs
            expected = expected.astype(np.float64)
            powers[side, layer] += (expected ** 2).sum(), ((found - expected) ** 2).sum()
            if side == 1:
                low[layer] = min(low[layer], expected.min())
                high[layer] = max(high[layer], expected.max())

    layers = []
    for i, (name, conv) in enumerate(convolutions.items()):
        (signal_in, noise_in), (signal, noise) = powers[:, i]
        largest = channel_maxima(conv)
        layers.append(LayerNoise(
            name=name,
            largest_weight=float(largest.max()),
            weight_spread=float(largest.max() / max(np.median(largest), TINY)),
            low=float(low[i]),
            high=float(high[i]),
            snr_db=signal_to_noise(signal, noise),
            own_snr_db=signal_to_noise(1, _ratio(noise, signal) - _ratio(noise_in, signal_in) if signal else 0)))
    return layers


def convolutions_of(network: object) -> dict[str, object]:
    """By name, in the order of computation."""
    found = {}
    for node in network.get_ordered_ops():
        if node.get_type_name() in CONVOLUTIONS:
            found[node.get_friendly_name().removesuffix(BIAS)] = node
    return found


def biased_outputs(network: object) -> dict[str, object]:
    """The output of each convolution after its bias, by the convolution's name."""
    found = {}
    for name, conv in convolutions_of(network).items():
        found[name] = conv.output(0)
        if not conv.get_friendly_name().endswith(BIAS):
            continue
        for target in conv.output(0).get_target_inputs():
            if target.get_node().get_type_name() == 'Add':
                found[name] = target.get_node().output(0)
                break
    return found


def constant_of(node: object, place: int) -> np.ndarray:
    """The constant behind an input of a node, before it is reshaped."""
    source = node.input_value(place).get_node()
    while source.get_type_name() != 'Constant':
        source = source.input_value(0).get_node()
    return source.get_data()


def channel_maxima(conv: object) -> np.ndarray:
    """Largest magnitude of the weights of each output channel."""
    data = np.abs(constant_of(conv, 1))
    grouped = conv.get_type_name() == 'GroupConvolution' and data.ndim == 5      # G, C_out / G, ...
    axes = 2 if grouped else 1
    channels = int(np.prod(data.shape[:axes]))
    return data.reshape(channels, -1).max(1)


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


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal else 0


def _taps(network: object, names: Sequence[str]) -> list:
    """The inputs of the convolutions, before a quantiser, then their outputs after the bias."""
    convolutions = convolutions_of(network)
    outputs = biased_outputs(network)
    inputs = [_unquantised(convolutions[name].input_value(0)) for name in names]
    return inputs + [outputs[name] for name in names]


def _unquantised(value: object) -> object:
    """What goes into the quantiser of an activation."""
    node = value.get_node()
    if node.get_type_name() != 'FakeQuantize':
        return value
    return _unquantised(node.input_value(0))


def _tapped(network: object, taps: Sequence[object]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """image -> the values of `taps`, outputs of nodes of an openvino.Model."""
    openvino = optional('openvino')
    model = openvino.Model(list(taps), network.get_parameters())
    request = openvino.Core().compile_model(model, 'CPU', F32).create_infer_request()

    def run(image: np.ndarray) -> list[np.ndarray]:
        request.infer([image])
        return [request.get_output_tensor(i).data for i in range(len(taps))]
    return run
