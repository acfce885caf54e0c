"""Float16 in a graph: which types its values have, what stays in float32, and what it computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from engines import two_networks
from helpers import retinanet
from torch import nn

from repvgg_mm import whole_model_convert
from repvgg_mm.convert.compare import relative_error
from repvgg_mm.export.networks import network_of
from repvgg_mm.export.onnx_graph import tidy, to_onnx
from repvgg_mm.precision.half import LARGEST, after_last_convolutions, leave_range, to_half

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
IMAGE = torch.randn(1, 3, 12, 14, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def network() -> nn.Module:
    return two_networks()[0]


@pytest.fixture(scope='module')
def model(network) -> onnx.ModelProto:
    return to_onnx(network, IMAGE, ['out'])


def run(model: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, dict(image=image))


def casts_of(model: onnx.ModelProto) -> int:
    return sum(node.op_type == 'Cast' for node in model.graph.node)


def constant_types(model: onnx.ModelProto) -> Counter:
    return Counter(constant.data_type for constant in model.graph.initializer)


@pytest.mark.parametrize('io_dtype, casts', [('float32', 2), ('float16', 0)])
def test_weights_and_values_are_half(io_dtype, casts, model, network):
    before = model.SerializeToString()
    made = to_half(model, [], io_dtype)
    assert constant_types(made)[FLOAT] == 0 and constant_types(made)[HALF] == constant_types(model)[FLOAT] > 0
    assert casts_of(made) == casts

    found, = run(made, IMAGE.numpy().astype(io_dtype))
    assert found.dtype == io_dtype
    expected = network(IMAGE).detach()
    tolerance = 5e-3 * expected.abs().max().item()
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=0, atol=tolerance)
    assert model.SerializeToString() == before


def overflowing() -> nn.Module:
    """Its second convolution gives numbers of about a million, which the third one makes small again."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
              nn.Conv2d(4, 2, 1)]
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        network[2].weight.mul_(1e6)
        network[4].weight.mul_(1e-6)
    return network


def test_what_leaves_the_range_stays_in_float32():
    network = overflowing()
    model = to_onnx(network, IMAGE, ['out'])
    kept = leave_range(model, [IMAGE.numpy()])
    assert [node.op_type for node in model.graph.node if node.name in kept] == ['Conv', 'Relu', 'Conv']

    expected = network(IMAGE).detach()
    tolerance = 5e-3 * expected.abs().max().item()
    found, = run(to_half(model, kept, 'float32'), IMAGE.numpy())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=tolerance)
    overflown, = run(to_half(model, [], 'float32'), IMAGE.numpy())
    assert not np.isfinite(overflown).all() or np.abs(overflown - expected.numpy()).max() > tolerance


def test_constants_beyond_the_range_stay_in_float32():
    class Scaled(nn.Module):
        def forward(self, image):
            return image * torch.tensor(2 * LARGEST) / torch.tensor(2 * LARGEST)

    model = to_onnx(Scaled(), IMAGE, ['out'])
    kept = leave_range(model, [np.zeros_like(IMAGE.numpy())])
    found, = run(to_half(model, kept, 'float32'), IMAGE.numpy())
    torch.testing.assert_close(torch.from_numpy(found), IMAGE, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('nms', [False, True])
@pytest.mark.parametrize('io_dtype', ['float32', 'float16'])
def test_boxes_are_decoded_in_float32(nms, io_dtype):
    """Beside PyTorch, whose convolutions alone are rounded by nothing."""
    network = network_of(whole_model_convert(retinanet()), nms=nms)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = to_onnx(network, image, network.outputs[:3 if nms else 2])
    tidy(model)

    after = after_last_convolutions(model)
    kinds = Counter(node.op_type for node in model.graph.node if node.name in after)
    assert kinds['Conv'] == 0 and kinds['Exp'] >= 1 and kinds['Concat'] >= 1
    made = to_half(model, after, io_dtype)
    assert casts_of(made) <= casts_of(model) + 14  # the ten outputs of the heads, inputs and outputs

    boxes, scores, *labels = run(made, image.numpy().astype(io_dtype))
    assert boxes.dtype == scores.dtype == io_dtype and all(one.dtype == np.int64 for one in labels)
    if not nms:
        with torch.no_grad():
            expected_boxes, expected_scores = network(image)
        assert relative_error(expected_boxes, torch.from_numpy(boxes).float()) < 5e-3
        assert relative_error(expected_scores, torch.from_numpy(scores).float()) < 5e-3


def test_a_value_that_is_read_in_both_types_is_cast_once():
    class Twice(nn.Module):
        def forward(self, image):
            x = image * 2
            return x.exp(), x.sin(), x.cos()

    model = to_onnx(Twice(), IMAGE, ['exp', 'sin', 'cos'])
    stay = [node.name for node in model.graph.node if node.op_type in ('Sin', 'Cos')]
    made = to_half(model, stay, 'float32')
    assert casts_of(made) == 3  # of the image, of x, of exp
    found = run(made, IMAGE.numpy())
    for one, expected in zip(found, Twice()(IMAGE)):
        torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-2, atol=1e-2)
