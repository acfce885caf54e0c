"""What quantisation does to each convolution of an OpenVINO network: ranges, and signal to noise on real images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.engine import optional

CONVOLUTIONS = ('Convolution', 'GroupConvolution')
BIAS = '/WithoutBiases'  # OpenVINO's name for a convolution whose bias is an Add after it
F32 = dict(INFERENCE_PRECISION_HINT='f32')


@dataclass(frozen=True)
class Layer:
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
    return float('inf') if noise <= 0 else float(10 * np.log10(signal / noise)) if signal else float('-inf')


def measure_layers(network: object, quantised: object, images: Iterable[np.ndarray]) -> list[Layer]:
    """Every convolution of the openvino.Model `network` in its order, compared with `quantised` on `images`.

    `quantised` is what NNCF made of `network`: nodes of the same names.
    """
    convolutions = convolutions_of(network)
    taps = [[conv.input_value(0) for conv in convolutions.values()], list(biased_outputs(network).values())]
    others = convolutions_of(quantised)
    other_outputs = biased_outputs(quantised)
    other_taps = [[_unquantised(others[name].input_value(0)) for name in convolutions],
                  [other_outputs[name] for name in convolutions]]
    sums = np.zeros((2, len(convolutions), 2))  # of inputs and of outputs: signal and noise
    ranges = np.tile([np.inf, -np.inf], (len(convolutions), 1))
    run, run_other = (_tapped(model, [tap for part in parts for tap in part])
                      for model, parts in ((network, taps), (quantised, other_taps)))
    for image in images:
        for i, (expected, found) in enumerate(zip(run(image), run_other(image))):
            part, layer = divmod(i, len(convolutions))
            expected = expected.astype(np.float64)
            sums[part, layer] += (expected ** 2).sum(), ((found - expected) ** 2).sum()
            if part:
                ranges[layer] = min(ranges[layer, 0], expected.min()), max(ranges[layer, 1], expected.max())
    layers = []
    for i, (name, conv) in enumerate(convolutions.items()):
        largest = channel_maxima(conv)
        (signal_in, noise_in), (signal, noise) = sums[:, i]
        own = noise / signal - (noise_in / signal_in if signal_in else 0) if signal else 0
        layers.append(Layer(
            name, float(largest.max()), float(largest.max() / max(np.median(largest), 1e-30)), *map(float, ranges[i]),
            signal_to_noise(signal, noise), signal_to_noise(1, own)))
    return layers


def convolutions_of(network: object) -> dict[str, object]:
    """By name, in the order of computation."""
    return {node.get_friendly_name().removesuffix(BIAS): node for node in network.get_ordered_ops()
            if node.get_type_name() in CONVOLUTIONS}


def biased_outputs(network: object) -> dict[str, object]:
    """The output of each convolution after its bias, by the convolution's name."""
    found = {}
    for name, conv in convolutions_of(network).items():
        adds = [target.get_node() for target in conv.output(0).get_target_inputs()
                if conv.get_friendly_name().endswith(BIAS) and target.get_node().get_type_name() == 'Add']
        found[name] = adds[0].output(0) if adds else conv.output(0)
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
    grouped = conv.get_type_name() == 'GroupConvolution' and data.ndim == 5                # G, C_out / G, ...
    return data.reshape(int(np.prod(data.shape[:2 if grouped else 1])), -1).max(1)


def layer_table(layers: Sequence[Layer], others: Mapping[str, Layer] | None = None) -> str:
    """A line for each layer; a further column with the signal to noise of the layers of the same name in `others`."""
    heads = ['largest weight', 'over median', 'output from', 'to', 'SNR, dB', 'own, dB', *['before'] * bool(others)]
    width = max(len(layer.name) for layer in layers)
    lines = [' '.join([f'{"layer":<{width}}', *(f'{head:>14}' for head in heads)])]
    for layer in layers:
        values = [f'{layer.largest_weight:.3f}', f'{layer.weight_spread:.1f}', f'{layer.low:.2f}', f'{layer.high:.2f}',
                  f'{layer.snr_db:.1f}', f'{layer.own_snr_db:.1f}']
        values += [f'{others[layer.name].snr_db:.1f}'] if others else []
        lines.append(' '.join([f'{layer.name:<{width}}', *(f'{value:>14}' for value in values)]))
    return '\n'.join(lines)


def _unquantised(value: object) -> object:
    """What goes into the quantiser of an activation."""
    node = value.get_node()
    return _unquantised(node.input_value(0)) if node.get_type_name() == 'FakeQuantize' else value


def _tapped(network: object, taps: Sequence[object]):
    """image -> the values of `taps`, outputs of nodes of an openvino.Model."""
    openvino = optional('openvino')
    model = openvino.Model(list(taps), network.get_parameters())
    request = openvino.Core().compile_model(model, 'CPU', F32).create_infer_request()

    def run(image: np.ndarray) -> list[np.ndarray]:
        request.infer([image])
        return [request.get_output_tensor(i).data for i in range(len(taps))]
    return run
