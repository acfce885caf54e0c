"""Cross-layer equalisation: the network stays the same, its channels become alike."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import backbone
from torch import nn
from torch.nn import functional as F

from repvgg_mm import whole_model_convert
from repvgg_mm.export.onnx_graph import tidy, to_onnx
from repvgg_mm.precision.equalise import equalise, scales
from repvgg_mm.precision.graph import arrays_of, constants_of, convolutions_of

pytestmark = pytest.mark.stack


def read(network: nn.Module, image: torch.Tensor, outputs: list[str]) -> onnx.ModelProto:
    graph = to_onnx(network.eval(), image, outputs)
    tidy(graph)
    return graph


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


def weights_of(model: onnx.ModelProto) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """In float64, weights and bias of each convolution."""
    constants = arrays_of(model, constants_of(model))
    found = []
    for conv in convolutions_of(model).values():
        own = [torch.from_numpy(constants[name].astype(np.float64)) for name in conv.input[1:]]
        found.append((*own, None)[:2])
    return found


def run(model: onnx.ModelProto, image: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, dict(image=image.numpy()))


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
    found = [run(one, image) for one in (model, equal)]
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


def uneven(*shape: int) -> np.ndarray:
    """Weights whose output channels differ by 2^8."""
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return weights * np.exp2(np.linspace(-4, 4, shape[0]))[:, None, None, None].astype(np.float32)


def graph_of(inputs: dict[str, list[int]], constants: dict[str, np.ndarray], *nodes: list[str]) -> onnx.ModelProto:
    """Convolutions, each given by its inputs and its output."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Conv', ends[:-1], ends[-1:], name=ends[-1]) for ends in nodes],
        'convolutions',
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info(nodes[-1][-1], onnx.TensorProto.FLOAT, list('nchw'))],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = onnx.helper.make_model(graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_an_output_that_is_the_weights_of_another_convolution_is_left():
    inputs = dict(other=[6, 3, 5, 5], image=[1, 4, 9, 9])
    model = graph_of(inputs, dict(w=uneven(4, 3, 3, 3)), ['other', 'w', 'a'], ['image', 'a', 'b'])
    assert equalise(model)[1] == []


@pytest.mark.parametrize('shared', ['weights', 'bias', None])
def test_constants_that_two_convolutions_share_are_left(shared):
    weights, bias = uneven(4, 4, 3, 3), np.ones(4, np.float32)
    constants = dict(w=weights, b=bias, w2=weights / 256, b2=bias)
    second = ['w' if shared == 'weights' else 'w2', 'b' if shared == 'bias' else 'b2']
    model = graph_of(dict(image=[1, 4, 9, 9]), constants, ['image', 'w', 'b', 'x'], ['x', *second, 'y'])
    equal, changed = equalise(model)
    assert changed == ([] if shared else ['x'])
    assert (equal == model) == bool(shared)


def test_a_graph_that_is_equalised_is_not_changed():
    model = graph_of(dict(image=[1, 4, 9, 9]), dict(w=uneven(4, 4, 3, 3), v=uneven(2, 4, 1, 1)),
                     ['image', 'w', 'x'], ['x', 'v', 'y'])
    before = model.SerializeToString()
    assert equalise(model)[1] == ['x'] and model.SerializeToString() == before
