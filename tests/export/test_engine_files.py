"""The files of an engine: written from a graph, with a description of exactly these files."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from engines import description
from torch import nn

from repvgg_mm import UserError
from repvgg_mm.engine.description import read_description
from repvgg_mm.export.engine_files import PROPERTIES, read_openvino, save_openvino, write_engine
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.export.target import PRECISIONS

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.fixture(scope='module')
def graph(network) -> onnx.ModelProto:
    return to_onnx(network, IMAGE, ['pooled'])


@pytest.mark.parametrize('precision', PRECISIONS)
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
    read = openvino.Core().compile_model(path, 'CPU', PROPERTIES['fp32'])
    torch.testing.assert_close(
        torch.from_numpy(read(IMAGE.numpy())['pooled']), network(IMAGE).detach(), rtol=1e-5, atol=1e-5)


def test_an_onnx_engine(graph, network, tmp_path):
    path, written = write_engine(graph, description(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['engine.json', 'engine.onnx']
    assert path.read_bytes() == graph.SerializeToString()
    assert written.openvino_properties == {} and written.versions == dict(onnx=onnx.__version__)
    found, = onnxruntime.InferenceSession(path).run(None, dict(image=IMAGE.numpy()))
    torch.testing.assert_close(torch.from_numpy(found), network(IMAGE).detach(), rtol=1e-5, atol=1e-5)


def test_an_engine_in_use_is_replaced_and_not_written_into(graph, tmp_path):
    path, _ = write_engine(graph, description(engine='openvino'), tmp_path)
    weights = path.with_suffix('.bin')
    before = weights.read_bytes()
    with weights.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        torch.manual_seed(1)
        other = to_onnx(nn.Conv2d(3, 4, 3), IMAGE, ['pooled'])
        save_openvino(read_openvino(other.SerializeToString()), path)
        assert mapped[:] == before
    assert weights.read_bytes() != before


def test_a_graph_that_openvino_cannot_read(graph, tmp_path):
    unknown = onnx.ModelProto()
    unknown.CopyFrom(graph)
    unknown.graph.node[0].op_type = 'Unheard'
    with pytest.raises(UserError, match=r'OpenVINO reads the exported graph, and cannot \(.*Export with --engine onnx'):
        write_engine(unknown, description(engine='openvino'), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_openvino_reads_is_the_graph(graph, network):
    compiled = openvino.Core().compile_model(read_openvino(graph.SerializeToString()), 'CPU', PROPERTIES['fp32'])
    np.testing.assert_allclose(compiled(IMAGE.numpy())[0], network(IMAGE).detach().numpy(), rtol=1e-5, atol=1e-5)
