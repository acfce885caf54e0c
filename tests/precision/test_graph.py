"""Convolutions and constants of an ONNX graph, and who reads them."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from engines import two_networks

from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.precision.graph import (
    BIAS,
    WEIGHTS,
    arrays_of,
    constants_of,
    convolutions_of,
    producers_of,
    readers_of,
    write_arrays,
)

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def exported() -> onnx.ModelProto:
    return to_onnx(two_networks()[0], torch.randn(1, 3, 12, 14), ['out'])


@pytest.fixture
def model(exported) -> onnx.ModelProto:
    """A copy that a test may change."""
    return copy.deepcopy(exported)


def test_convolutions_with_their_constants(model):
    network = two_networks()[0]
    found = list(convolutions_of(model).values())
    arrays = arrays_of(model, constants_of(model))
    for conv, node in zip((network[0], network[2], network[4]), found, strict=True):
        np.testing.assert_array_equal(arrays[node.input[WEIGHTS]], conv.weight.detach().numpy())
        np.testing.assert_array_equal(arrays[node.input[BIAS]], conv.bias.detach().numpy())


def test_a_convolution_with_computed_weights_is_none_of_them(model):
    first, *others = convolutions_of(model)
    convolutions_of(model)[first].input[WEIGHTS] = 'computed'
    assert list(convolutions_of(model)) == others


def test_what_is_written_is_read(model):
    name = next(iter(convolutions_of(model).values())).input[WEIGHTS]
    before = arrays_of(model, constants_of(model))
    write_arrays(model, {name: before[name] + 1})
    after = arrays_of(model, constants_of(model))
    assert after.keys() == before.keys()
    for other in after:
        np.testing.assert_array_equal(after[other], before[other] + (other == name))


def test_producers_and_readers(model):
    *_, relu, last = model.graph.node
    assert (relu.op_type, last.op_type) == ('Relu', 'Conv')
    producers, readers = producers_of(model), readers_of(model)
    assert producers[relu.output[0]] == relu and 'image' not in producers
    assert readers[relu.output[0]] == [last] and readers['out'] == [None]
