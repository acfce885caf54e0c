"""The commands for TensorRT: what they say for each precision and size, in words that a shell takes as one."""

from __future__ import annotations

import shlex

import pytest
from engines import description

from repvgg_mm.engine.description import Comparison, Description, Input
from repvgg_mm.export.tensorrt import tensorrt_commands

FIXED = Input('image', 'float32', 'NCHW', [1, 3, 64, 96])
DYNAMIC = Input('image', 'uint8', 'NHWC', [None, None, None, 3])


def described(image: Input = FIXED, precision: str = 'fp32') -> Description:
    shape = [1, 3, 64, 96] if image is FIXED else [1, 64, 96, 3]
    return description(input=image, precision=precision, compared=[Comparison(shape, {})])


@pytest.mark.parametrize('precision, flags, tolerance', [
    ('fp32', ['--noTF32'], '1e-3'), ('fp16', [], '1e-2'), ('int8', [], '1e-1')])
def test_types_are_those_of_the_graph(precision, flags, tolerance):
    build, compare = tensorrt_commands(described(precision=precision)).splitlines()
    assert shlex.split(build) == [
        'trtexec', '--onnx=engine.onnx', '--saveEngine=engine.plan', '--stronglyTyped', *flags]
    assert shlex.split(compare) == [
        'polygraphy', 'run', 'engine.onnx', '--trt', '--strongly-typed', '--onnxrt', '--val-range', 'image:[-2,2]',
        '--rtol', tolerance, '--atol', tolerance]


def test_sizes_of_a_dynamic_engine():
    build, compare = map(shlex.split, tensorrt_commands(described(DYNAMIC, 'fp16')).splitlines())
    assert build[4:] == [
        '--minShapes=image:1x64x96x3', '--optShapes=image:1x64x96x3', '--maxShapes=image:4x64x96x3']
    assert compare[compare.index('--input-shapes') + 1] == 'image:[1,64,96,3]'
    assert compare[compare.index('--val-range') + 1] == 'image:[0,255]'


def test_the_plan_lies_beside_its_description():
    build, compare = map(shlex.split, tensorrt_commands(described(), 'a b/engine.onnx').splitlines())
    assert build[1:3] == ['--onnx=a b/engine.onnx', '--saveEngine=a b/engine.plan']
    assert compare[2] == 'a b/engine.onnx'
