"""Weights rounded by GPTQ, against the paper's equations written out with a new inverse at each step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repvgg_mm.export.onnx_graph import tidy, to_onnx
from repvgg_mm.precision import rounding
from repvgg_mm.precision.graph import arrays_of, convolutions_of, tapped
from repvgg_mm.precision.quantise import QUANTISERS
from repvgg_mm.precision.rounding import round_channels, round_weights

pytestmark = pytest.mark.stack
IMAGES = [torch.rand(1, 3, 16, 18, generator=torch.Generator().manual_seed(seed)).numpy() for seed in range(3)]


def written_out(weights: Tensor, products: Tensor) -> Tensor:
    """Equations 2 and 3 of the paper: one weight of all channels after the other, the inverse of those left anew."""
    step = weights.abs().amax(1, keepdim=True) / 127
    damped = products + 0.01 * products.diagonal().mean() * torch.eye(len(products), dtype=products.dtype)
    order = products.diagonal().argsort(descending=True).tolist()
    left, rounded = weights.clone(), weights.clone()
    while order:
        inverse = damped[order][:, order].inverse()
        j = order[0]
        rounded[:, j] = ((left[:, j:j + 1] / step).round().clamp(-127, 127) * step)[:, 0]
        largest = weights[:, j].abs() == weights.abs().amax(1)
        rounded[largest, j] = weights[largest, j]
        error = (left[:, j] - rounded[:, j]) / inverse[0, 0]
        left[:, order] -= error[:, None] * inverse[0]
        order = order[1:]
    return rounded


def fused_like(channels: int, count: int, spread: float = 0.02) -> Tensor:
    """One weight of each channel far above the others, as the identity branch makes it, where `spread` is small."""
    weights = spread * torch.randn(channels, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights[torch.arange(channels), torch.arange(channels)] += 1
    return weights


def alike_inputs(count: int, positions: int) -> Tensor:
    """Inputs that mostly follow three common ones, as neighbouring pixels do."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.rand(count, 3, generator=generator) @ torch.rand(3, positions, generator=generator)
    return (mixed + 0.05 * torch.rand(count, positions, generator=generator)).double()


@pytest.mark.parametrize('spread', [0.02, 0.5])
def test_channels_against_the_paper(spread):
    """With the larger spread the errors of others would move the largest weight of two channels by a step."""
    inputs = alike_inputs(40, 50)
    weights, products = fused_like(40, 40, spread), inputs @ inputs.T
    found = round_channels(weights, products)
    torch.testing.assert_close(found, written_out(weights, products), rtol=1e-10, atol=1e-10)

    largest = weights.abs().argmax(1, keepdim=True)
    step = weights.gather(1, largest).abs() / 127
    torch.testing.assert_close(found.gather(1, largest), weights.gather(1, largest), rtol=1e-10, atol=0)
    torch.testing.assert_close(found / step, (found / step).round(), rtol=0, atol=1e-10)
    nearest = (weights / step).round() * step
    assert ((found - weights) @ inputs).norm() < 0.5 * ((nearest - weights) @ inputs).norm()


def test_a_channel_of_zeros():
    weights = fused_like(2, 4)
    weights[1] = 0
    inputs = alike_inputs(4, 9)
    assert not round_channels(weights, inputs @ inputs.T)[1].any()


def test_inputs_that_are_never_there():
    weights, products = fused_like(4, 6), torch.zeros(6, 6, dtype=torch.float64)
    found = round_channels(weights, products)
    assert (found - weights).abs().max() < weights.abs().max() / 127 / 2 + 1e-12


class Every(nn.Module):
    """Stride, padding, dilation, groups, a kernel of 1, and weights that two convolutions share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=(2, 1), dilation=(2, 1), bias=False)
        self.shared = nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.grouped(self.stem(image).relu()).relu()
        y = self.dilated(x).relu()
        return self.shared(x)[..., :4, :4] + self.shared(y)[..., :4, :4]


def graph_of(network: nn.Module) -> onnx.ModelProto:
    graph = to_onnx(network.eval(), torch.from_numpy(IMAGES[0]), ['out'])
    tidy(graph)
    return graph


def patches(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What each output position reads, (G, K, positions), by convolving with kernels of a single 1."""
    count = conv.weight[0].numel()
    ones = torch.eye(count, dtype=inputs.dtype).view(count, *conv.weight.shape[1:])
    parts = inputs.chunk(conv.groups, 1)
    read = [F.conv2d(part, ones, None, conv.stride, conv.padding, conv.dilation)[0].flatten(1) for part in parts]
    return torch.stack(read)


def test_every_convolution_of_a_graph():
    network = Every()
    graph = graph_of(network)
    found = round_weights(graph, IMAGES)

    inputs = {name: [] for name, _ in network.named_children()}
    for name, conv in network.named_children():
        conv.register_forward_hook(lambda conv, args, out, name=name: inputs[name].append(args[0].double()))
    for image in IMAGES:
        with torch.no_grad():
            network(torch.from_numpy(image))

    rounded = arrays_of(found, {conv.input[1] for conv in convolutions_of(found).values()})
    assert len(rounded) == 4
    for name, conv in network.named_children():
        read = torch.cat([patches(conv, of_image) for of_image in inputs[name]], -1)
        by_group = conv.weight.detach().double().flatten(1).chunk(conv.groups)
        expected = [round_channels(own, x @ x.T) for own, x in zip(by_group, read)]
        expected = torch.cat(expected).view_as(conv.weight).float().numpy()
        errors = [np.abs(array - expected).max() for array in rounded.values() if array.shape == expected.shape]
        assert min(errors) < 1e-6
    assert graph == graph_of(Every())


@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_a_quantiser_leaves_them_and_the_output_is_nearer(engine):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    network[2].weight.data = fused_like(16, 144).view(16, 16, 3, 3).float()
    graph = graph_of(network)
    rounded = round_weights(graph, IMAGES)
    quantised = {}
    for name, model in dict(plain=graph, rounded=rounded).items():
        quantised[name] = QUANTISERS[engine](model, IMAGES)
    output = graph.graph.output[0].name
    expected = np.stack([tapped(graph, [output])(image)[0] for image in IMAGES])
    errors = {}
    for name, model in quantised.items():
        errors[name] = np.abs(np.stack([tapped(model, [output])(image)[0] for image in IMAGES]) - expected).mean()
    assert errors['rounded'] < 0.8 * errors['plain']


def test_what_is_left_as_it_is(monkeypatch):
    graph = graph_of(Every())
    weights = [conv.input[1] for conv in convolutions_of(graph).values()]
    before = arrays_of(graph, weights)
    stem, *_ = convolutions_of(graph)
    monkeypatch.setattr(rounding, 'MOST_WEIGHTS', 40)
    said = []
    after = arrays_of(round_weights(graph, IMAGES, kept=[stem], progress=said.append), weights)
    changed = [not np.array_equal(before[name], after[name]) for name in weights]
    assert changed == [False, True, False, True, True]  # kept, 36 weights a channel, 72, and 8 of both that share them
    assert said == ['Rounding weights, 0 of 2 done']


def test_matrices_that_do_not_fit_together_are_summed_one_after_the_other(monkeypatch):
    graph = graph_of(Every())
    together = round_weights(graph, IMAGES)
    monkeypatch.setattr(rounding, 'MOST_BYTES', 1)
    said = []
    assert round_weights(graph, IMAGES, progress=said.append) == together
    assert said == [f'Rounding weights, {count} of 4 done' for count in range(4)]


def test_several_images_at_a_call():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    small = [image[..., :12, :12] for image in IMAGES]  # so that every position is used
    found = []
    for images in ([np.concatenate(small)], small):
        rounded = round_weights(to_onnx(network, torch.from_numpy(images[0]), ['out']), images)
        conv, = convolutions_of(rounded).values()
        found.append(arrays_of(rounded, [conv.input[1]])[conv.input[1]])
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_positions_are_drawn_from_the_whole_map(monkeypatch):
    """Every 40th position of a map 40 wide would be of its first column, where a third of the kernel reads padding."""
    monkeypatch.setattr(rounding, 'MOST_POSITIONS', 64)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    network[0].weight.data = fused_like(8, 27).view(8, 3, 3, 3).float()
    images = [F.interpolate(torch.from_numpy(image), (64, 40), mode='bilinear').numpy() for image in IMAGES]
    graph = to_onnx(network, torch.from_numpy(images[0]), ['out'])
    conv, = convolutions_of(graph).values()
    found = torch.from_numpy(arrays_of(round_weights(graph, images), [conv.input[1]])[conv.input[1]]).double()

    weights = network[0].weight.detach().double()
    step = weights.abs().amax((1, 2, 3), keepdim=True) / 127
    nearest = (weights / step).round() * step
    inputs = torch.from_numpy(np.concatenate(images)).double()
    errors = [F.conv2d(inputs, rounded - weights, padding=1).norm() for rounded in (found, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_images_are_spread_over_those_given(monkeypatch):
    monkeypatch.setattr(rounding, 'MOST_IMAGES', 2)
    graph = graph_of(Every())
    assert round_weights(graph, [*IMAGES, IMAGES[0]]) == round_weights(graph, [IMAGES[0], IMAGES[2]])


def test_weights_that_a_convolution_in_float32_reads_too():
    graph = graph_of(Every())
    *_, first, second = convolutions_of(graph).values()
    assert first.input[1] == second.input[1]
    found = round_weights(graph, IMAGES, kept=[first.name])
    after = convolutions_of(found)
    names = [after[conv.name].input[1] for conv in (first, second)]
    kept, rounded = arrays_of(found, names).values()
    np.testing.assert_array_equal(kept, arrays_of(graph, [first.input[1]])[first.input[1]])
    assert names[0] == first.input[1] and not np.array_equal(kept, rounded)


def test_numbers_that_are_not_finite_are_left_alone():
    graph = graph_of(Every())
    infinite = np.full_like(IMAGES[0], np.inf)
    weights = [conv.input[1] for conv in convolutions_of(graph).values()]
    before, after = (arrays_of(model, weights) for model in (graph, round_weights(graph, [infinite])))
    for name in weights:
        np.testing.assert_array_equal(before[name], after[name])
