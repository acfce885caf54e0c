"""Cross-layer equalisation: the network stays the same, its channels become alike."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch
from helpers import backbone
from torch import nn
from torch.nn import functional as F

from repvgg_mm import whole_model_convert
from repvgg_mm.export.onnx_graph import tidy, to_onnx
from repvgg_mm.precision.equalise import equalise, scales
from repvgg_mm.precision.layer_noise import biased_outputs, constant_of, convolutions_of

pytestmark = pytest.mark.stack


def read(network: nn.Module, image: torch.Tensor, outputs: list[str]):
    graph = to_onnx(network.eval(), image, outputs)
    tidy(graph)
    return openvino.Core().read_model(graph.SerializeToString())


def uneven_chain() -> nn.Sequential:
    """Three convolutions whose channels differ by up to 2^12, the last one with one reader outside the chain's rule."""
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        for conv in (chain[0], chain[2]):
            factors = torch.exp2(torch.linspace(-6, 6, conv.out_channels))
            conv.weight *= factors[:, None, None, None]
            if conv.bias is not None:
                conv.bias *= factors
    return chain


def weights_of(model) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """In float64, weights and bias of each convolution."""
    found = []
    for name, conv in convolutions_of(model).items():
        add = biased_outputs(model)[name].get_node()
        bias = None
        if add.get_type_name() == 'Add':
            place = 1 - [add.input_value(i).get_node().get_name() for i in (0, 1)].index(conv.get_name())
            bias = torch.from_numpy(constant_of(add, place).reshape(-1).astype(np.float64))
        found.append((torch.from_numpy(constant_of(conv, 1).astype(np.float64)), bias))
    return found


def test_a_chain_computes_the_same_in_float64():
    chain, image = uneven_chain(), torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))
    model = read(chain, image, ['out'])
    equal, changed = equalise(model)
    assert changed == list(convolutions_of(model))[:2]
    x = image.double()
    for i, (weight, bias) in enumerate(weights_of(equal)):
        assert i == 2 or not torch.equal(weight, chain[2 * i].weight.double())
        x = F.conv2d(x.relu() if i else x, weight, bias)
    torch.testing.assert_close(x, chain.double()(image.double()), rtol=1e-10, atol=1e-10)


def test_ranges_become_alike():
    image = torch.randn(1, 3, 12, 14, generator=torch.Generator().manual_seed(1))
    equal, _ = equalise(read(uneven_chain(), image, ['out']))
    (first, bias), (second, _), (third, _) = weights_of(equal)
    for before, after in ((first, second), (second, third)):
        ratio = before.abs().flatten(1).amax(1) / after.abs().amax((0, 2, 3))
        assert before is first or (0.49 < ratio.min() and ratio.max() < 2.01)  # biases may forbid it
    assert bias.abs().max() <= uneven_chain()[0].bias.abs().max()


def test_a_whole_backbone_computes_the_same_bit_for_bit():
    deploy = whole_model_convert(backbone())
    image = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    names = [f'stage{i}' for i in range(4)]
    model = read(deploy, image, names)
    equal, changed = equalise(model)
    outside = {f'stage_{i}.{depth - 1}' for i, depth in enumerate((1, 2, 4, 1), 1)}  # their outputs leave the backbone
    expected = [name for name in convolutions_of(model) if not any(name.startswith(f'{last}.') for last in outside)]
    assert changed == expected and len(expected) == 5
    found = [openvino.Core().compile_model(one, 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))(image.numpy())
             for one in (model, equal)]
    for i in range(4):
        assert np.abs(found[0][i]).max() > 0.1
        np.testing.assert_array_equal(found[0][i], found[1][i])


class Shared(nn.Module):
    """Weights that two levels share, grouped ones, and an output that is also added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tower = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.grouped, self.last = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.first(x)
        return self.tower(x), self.tower(x[:, :, ::2]), self.last(self.grouped(x).relu())


def test_what_is_left_as_it_is():
    torch.manual_seed(0)
    model = read(Shared(), torch.randn(1, 3, 8, 8), ['a', 'b', 'c'])
    assert equalise(model)[1] == []


def test_scales():
    first = np.float32([[8, -64], [1, .5], [0, 0], [1e-9, 0]])[:, :, None, None]
    readers = [np.ones((5, 4, 3, 3), np.float32), np.float32([4, 4, 1, 1])[None, :, None, None]]
    np.testing.assert_array_equal(scales(first, np.zeros(4), readers)[:3], [4, .5, 1])
    assert scales(first, np.zeros(4), readers)[3] == 2. ** -15
    np.testing.assert_array_equal(scales(first, np.float32([.5, 1, 1, .2]), readers), [4, 1, 1, .25])


def convolution(image, weights):
    return openvino.opset8.convolution(image, weights, [1, 1], [0, 0], [0, 0], [1, 1])


def uneven(*shape: int) -> np.ndarray:
    """Weights whose output channels differ by 2^8."""
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return weights * np.exp2(np.linspace(-4, 4, shape[0]))[:, None, None, None].astype(np.float32)


def test_an_output_that_is_the_weights_of_another_convolution_is_left():
    first_image = openvino.opset8.parameter([6, 3, 5, 5], np.float32)
    image = openvino.opset8.parameter([1, 4, 9, 9], np.float32)
    computed = convolution(first_image, openvino.opset8.constant(uneven(4, 3, 3, 3)))  # 6, 4, 3, 3
    model = openvino.Model([convolution(image, computed)], [first_image, image])
    _, changed = equalise(model)
    assert changed == []


def test_weights_that_two_convolutions_share_are_left():
    image = openvino.opset8.parameter([1, 4, 9, 9], np.float32)
    shared = openvino.opset8.constant(uneven(4, 4, 3, 3))
    model = openvino.Model([convolution(convolution(image, shared), shared)], [image])
    equal, changed = equalise(model)
    assert changed == [] and len(convolutions_of(equal)) == 2
    apart = openvino.Model([convolution(
        convolution(image, openvino.opset8.constant(uneven(4, 4, 3, 3))),
        openvino.opset8.constant(uneven(2, 4, 3, 3)))], [image])
    assert len(equalise(apart)[1]) == 1  # seen to be changed where each has its own
