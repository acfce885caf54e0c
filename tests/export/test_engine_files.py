"""The files of an engine: written from a graph, with a description of exactly these files."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import onnx
import onnxruntime
import openvino
import pytest
import torch
from engines import description
from torch import nn

from repvgg_mm.engine.description import read_description
from repvgg_mm.engine.openvino_file import PROPERTIES, openvino_core
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.onnx_graph import to_onnx

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.fixture(scope='module')
def graph(network) -> onnx.ModelProto:
    return to_onnx(network, IMAGE, ['pooled'])


@pytest.mark.parametrize('precision', PROPERTIES)
def test_an_openvino_engine(graph, precision, tmp_path):
    given = description(engine='openvino', precision=precision, versions=dict(torch='2.5.1'))
    path, written = write_engine(graph, given, tmp_path)
    assert path == tmp_path / 'engine.xml'
    contents = {name: (tmp_path / name).read_bytes() for name in ('engine.xml', 'engine.bin')}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert written.files == digests and written.openvino_properties == PROPERTIES[precision]
    assert written.versions == dict(torch='2.5.1', onnx=onnx.__version__, openvino=openvino.__version__)
    assert read_description(path) == written
    same = replace(written, files={}, openvino_properties={}, versions=given.versions)
    assert same == given == description(engine='openvino', precision=precision, versions=dict(torch='2.5.1'))


def test_weights_stay_float32_in_bf16(graph, network, tmp_path):
    path, _ = write_engine(graph, description(engine='openvino', precision='bf16'), tmp_path)
    read = openvino_core().compile_model(path, 'CPU', PROPERTIES['fp32'])
    torch.testing.assert_close(
        torch.from_numpy(read(IMAGE.numpy())['pooled']), network(IMAGE).detach(), rtol=1e-5, atol=1e-5)


def test_an_onnx_engine(graph, network, tmp_path):
    path, written = write_engine(graph, description(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['engine.json', 'engine.onnx']
    assert path.read_bytes() == graph.SerializeToString()
    assert written.openvino_properties == {} and written.versions == dict(onnx=onnx.__version__)
    found, = onnxruntime.InferenceSession(path).run(None, dict(image=IMAGE.numpy()))
    torch.testing.assert_close(torch.from_numpy(found), network(IMAGE).detach(), rtol=1e-5, atol=1e-5)
