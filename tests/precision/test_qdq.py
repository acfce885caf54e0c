"""Q/DQ before convolutions and nowhere else, by both quantisers, and graphs that break the rules."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from engines import two_networks
from helpers import retinanet
from torch import nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.export.networks import network_of
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.precision.graph import arrays_of, constants_of, convolutions_of, producers_of, write_arrays
from repvgg_mm.precision.layer_noise import measure_layers
from repvgg_mm.precision.qdq import DEQUANTISE, QUANTISE, check_qdq, quantise_for_cpu, quantise_symmetric

pytestmark = pytest.mark.stack
QUANTISERS = dict(symmetric=quantise_symmetric, cpu=quantise_for_cpu)


def images_of(*size: int) -> list[np.ndarray]:
    return [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)).numpy() for seed in range(3)]


@pytest.fixture(scope='module')
def model() -> onnx.ModelProto:
    return to_onnx(two_networks()[0], torch.randn(1, 3, 12, 14), ['out'])


@pytest.fixture(scope='module')
def quantised(model) -> onnx.ModelProto:
    return quantise_symmetric(model, images_of(12, 14))


def reads_int8(model: onnx.ModelProto) -> dict[str, bool]:
    """Of each convolution, whether activation and weights are dequantised."""
    producers = producers_of(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == 'Conv':
            before = [producers.get(name) for name in node.input[:2]]
            found[node.name] = all(one is not None and one.op_type == DEQUANTISE for one in before)
    return found


@pytest.mark.parametrize('way', QUANTISERS)
@pytest.mark.parametrize('kept', [[], [1]])
def test_every_convolution_but_those_kept(way, kept, model):
    names = list(convolutions_of(model))
    before = model.SerializeToString()
    made = QUANTISERS[way](model, images_of(12, 14), [names[i] for i in kept])
    assert reads_int8(made) == {name: i not in kept for i, name in enumerate(names)}
    assert model.SerializeToString() == before


@pytest.mark.parametrize('way', QUANTISERS)
def test_noise_of_eight_bits(way, model):
    layers = measure_layers(model, QUANTISERS[way](model, images_of(12, 14)), images_of(12, 14))
    assert all(30 < layer.snr_db < 60 for layer in layers)


def test_values_against_rounding_in_numpy(model, quantised):
    first = next(iter(convolutions_of(model).values()))
    weights = arrays_of(model, [first.input[1]])[first.input[1]]
    step = np.abs(weights).max((1, 2, 3)) / 127
    pair = producers_of(quantised)[convolution(quantised, 0).input[1]]
    constants = arrays_of(quantised, pair.input)
    np.testing.assert_allclose(constants[pair.input[1]], step, rtol=1e-6)
    np.testing.assert_array_equal(constants[pair.input[0]], np.round(weights / step[:, None, None, None]))

    activation = producers_of(quantised)[convolution(quantised, 0).input[0]]
    scale = arrays_of(quantised, activation.input[1:])[activation.input[1]]
    assert scale == pytest.approx(max(np.abs(image).max() for image in images_of(12, 14)) / 127, rel=1e-2)


def test_boxes_are_decoded_in_float32():
    network = network_of(whole_model_convert(retinanet()))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = to_onnx(network, image, list(network.outputs[:2]))
    made = quantise_symmetric(model, [image.numpy()])
    check_qdq(made, [node.name for node in model.graph.node if node.op_type == 'Conv'])
    types = [node.op_type for node in made.graph.node]
    assert types.count(QUANTISE) > 20 and {'Sigmoid', 'Exp', 'Concat'} <= set(types)


def convolution(model: onnx.ModelProto, place: int) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == 'Conv'][place]


def broken(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    """A copy that is quantised in another way."""
    model = copy.deepcopy(model)
    producers = producers_of(model)
    pair = producers[convolution(model, 1).input[0]]
    if how == 'a pair before the ReLU':
        relu = next(node for node in model.graph.node if node.op_type == 'Relu')
        relu.input[0] = pair.output[0]
    elif how == 'a pair after the last':
        model.graph.output[0].name = producers[convolution(model, 0).input[0]].output[0]
    elif how == 'a zero point':
        write_arrays(model, {pair.input[2]: np.int8(3)})
    elif how == 'uint8':
        write_arrays(model, {pair.input[2]: np.uint8(0)})
    elif how == 'weights by tensor':
        weights = producers[convolution(model, 1).input[1]]
        write_arrays(model, {weights.input[1]: np.float32([.1]), weights.input[2]: np.int8([0])})
    elif how == 'weights in float32':
        convolution(model, 1).input[1] = next(
            name for name, constant in constants_of(model).items() if constant.data_type == onnx.TensorProto.FLOAT)
    return model


@pytest.mark.parametrize('how, message', [
    ('a pair before the ReLU', 'is read by'),
    ('a pair after the last', 'is read by an output'),
    ('a zero point', 'has zero points of int8, up to 3'),
    ('uint8', 'has zero points of uint8, up to 0'),
    ('weights by tensor', 'has 1 scales instead of 8'),
    ('weights in float32', 'reads 1 values that are dequantised')])
def test_a_graph_that_breaks_a_rule(how, message, model, quantised):
    names = list(convolutions_of(model))
    check_qdq(quantised, names)
    with pytest.raises(UserError, match=f'int8 has Q/DQ before its convolutions alone, .* {message}.* Nothing was'):
        check_qdq(broken(quantised, how), names)


def test_convolutions_that_should_not_be_quantised(model, quantised):
    with pytest.raises(UserError, match='reads 2 values that are dequantised'):
        check_qdq(quantised, list(convolutions_of(model))[1:])


def test_activations_in_uint8_are_not_for_tensorrt(model):
    made = quantise_for_cpu(model, images_of(12, 14))
    with pytest.raises(UserError, match='has zero points of uint8'):
        check_qdq(made, convolutions_of(model))


class Branches(nn.Module):
    """A pyramid of averages beside the image's features, as in a PSP head, and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pooled, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(12, 5, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[2:])
        return self.last(torch.cat([x, pooled], 1)).softmax(1)


@pytest.mark.parametrize('way', QUANTISERS)
def test_what_is_between_convolutions_stays_in_float32(way):
    torch.manual_seed(0)
    model = to_onnx(Branches().eval(), torch.randn(1, 3, 12, 14), ['out'])
    made = QUANTISERS[way](model, images_of(12, 14))
    assert list(reads_int8(made).values()) == [True] * 3
    if way == 'symmetric':
        check_qdq(made, convolutions_of(model))
    assert measure_layers(model, made, images_of(12, 14))[-1].snr_db > 25


class Shared(nn.Module):
    """Weights that two levels share, as in a detector's head, and a value that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tower, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.first(x).relu()
        return self.tower(x), self.tower(x[:, :, ::2]), self.last(x)


@pytest.mark.parametrize('place', [1, 2, 3])
def test_a_layer_in_float32_beside_one_that_reads_the_same(place):
    torch.manual_seed(0)
    model = to_onnx(Shared().eval(), torch.randn(1, 3, 12, 14), ['a', 'b', 'c'])
    names = list(convolutions_of(model))
    made = quantise_symmetric(model, images_of(12, 14), [names[place]])
    check_qdq(made, {*names} - {names[place]})
    onnx.checker.check_model(made, full_check=True)
    assert all(30 < layer.snr_db < 60 for layer in measure_layers(model, made, images_of(12, 14)))
