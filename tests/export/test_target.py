"""What can be exported, and what is refused before anything is done."""

from __future__ import annotations

import dataclasses

import pytest

from repvgg_mm import UserError
from repvgg_mm.export.target import ENGINES, PRECISIONS, Target


@pytest.mark.parametrize('values, message', [
    (dict(engine='tensorrt'), 'Engines are onnx, openvino'),
    (dict(precision='fp8'), 'got onnx in fp8'),
    (dict(precision='bf16'), "ONNX Runtime's CPU kernels .* Use --engine openvino"),
    (dict(shape=(0, 8)), 'a pixel or more on each side, got --shape 0 8')])
def test_targets_that_do_not_exist(values, message):
    with pytest.raises(UserError, match=message):
        Target(**values)


@pytest.mark.parametrize('values, message', [
    (dict(calib_images=0), r'--calib-images 0 leaves none\. Choose 1 or more'),
    (dict(max_drop=float('nan')), 'number of points, such as 0.3, got nan')])
def test_targets_in_int8_that_do_not_exist(values, message):
    with pytest.raises(UserError, match=message):
        Target(**{**dict(engine='openvino', precision='int8'), **values})


def test_all_others_exist():
    refused = [('onnx', 'bf16'), ('openvino', 'fp16')]
    for pair in [(engine, precision) for engine in ENGINES for precision in PRECISIONS]:
        if pair not in refused:
            assert (Target(*pair).engine, Target(*pair).precision) == pair


@pytest.mark.parametrize('options, axes', [
    ({}, ()), (dict(preprocess=True), ()), (dict(dynamic=True), (0, 2, 3)),
    (dict(dynamic=True, preprocess=True), (0, 1, 2))])
def test_axes_of_any_size(options, axes):
    """Channels are second, or last where images go in as they are read."""
    assert Target(**options).dynamic_axes == axes


def test_a_target_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Target().precision = 'bf16'
