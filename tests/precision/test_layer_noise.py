"""What is measured of each convolution, against PyTorch in float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from engines import two_networks
from torch import nn

from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.precision.layer_noise import (
    LayerNoise,
    channel_maxima,
    layer_table,
    measure_layers,
    signal_to_noise,
)


def read(network: nn.Module, image: torch.Tensor) -> onnx.ModelProto:
    return to_onnx(network, image, ['out'])


def test_layers_against_pytorch_in_float64():
    networks = two_networks()
    images = [torch.randn(1, 3, 12, 14, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    models = [read(network, images[0]) for network in networks]
    layers = measure_layers(*models, [image.numpy() for image in images])
    values = []
    with torch.no_grad():
        for network in (network.double() for network in networks):
            values.append([[network[:i](image.double()) for image in images] for i in range(6)])
    for layer, i in zip(layers, (0, 2, 4), strict=True):
        ratios = []
        for place in (i, i + 1):
            expected, found = (torch.cat(of[place]) for of in values)
            ratios.append(float((found - expected).square().sum() / expected.square().sum()))
        output = torch.cat(values[0][i + 1])
        magnitudes = networks[0][i].weight.abs().flatten(1).amax(1)
        median = np.median(magnitudes.detach().numpy())
        assert layer.snr_db == pytest.approx(-10 * np.log10(ratios[1]), abs=1e-3)
        own = ratios[1] - ratios[0]
        assert layer.own_snr_db == pytest.approx(-10 * np.log10(own) if own > 0 else np.inf, abs=1e-2)
        assert (layer.low, layer.high) == pytest.approx((output.min().item(), output.max().item()), rel=1e-5)
        assert layer.largest_weight == pytest.approx(magnitudes.max().item(), rel=1e-6)
        assert layer.weight_spread == pytest.approx(magnitudes.max().item() / median, rel=1e-6)
    assert len(layer_table(layers).splitlines()) == 4
    assert layer_table(layers, {layer.name: layer for layer in layers}).splitlines()[0].endswith('before')


def test_signal_to_noise():
    assert signal_to_noise(100, 1) == 20 and signal_to_noise(1, 10) == -10
    assert signal_to_noise(1, 0) == signal_to_noise(0, 0) == float('inf') and signal_to_noise(0, 1) == float('-inf')


def test_a_network_has_no_noise_against_itself():
    model = read(two_networks()[0], torch.randn(1, 3, 12, 14))
    layers = measure_layers(model, model, [np.ones((1, 3, 12, 14), np.float32)])
    assert [(layer.snr_db, layer.own_snr_db) for layer in layers] == [(float('inf'), float('inf'))] * 3


def test_largest_weights_of_each_channel():
    weights = np.random.default_rng(0).normal(size=(6, 2, 3, 3)).astype(np.float32)
    expected = [max(abs(value) for value in channel.flatten()) for channel in weights]
    np.testing.assert_array_equal(channel_maxima(weights), expected)


def test_the_table_of_layers():
    first = LayerNoise('stem', 1.25, 3.14, -2.5, 4., 30.26, float('inf'))
    second = LayerNoise('stage_1.0', 0.5, 1., 0., 1., 12., 14.)
    heads, *lines = layer_table([first, second]).splitlines()
    assert heads.split() == 'layer largest weight over median output from to SNR, dB own, dB'.split()
    assert [line.split() for line in lines] == [
        ['stem', '1.250', '3.1', '-2.50', '4.00', '30.3', 'inf'],
        ['stage_1.0', '0.500', '1.0', '0.00', '1.00', '12.0', '14.0']]
    assert len({len(line) for line in (heads, *lines)}) == 1
    compared = layer_table([first], dict(stem=LayerNoise('stem', 1., 1., 0., 1., 20., 20.))).splitlines()
    assert compared[0].endswith('before') and compared[1].split()[-1] == '20.0'
