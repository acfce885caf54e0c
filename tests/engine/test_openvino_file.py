"""Networks of OpenVINO: what is read is the ONNX graph, what is written replaces the files that were there."""

from __future__ import annotations

import mmap
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from repvgg_mm import UserError
from repvgg_mm.engine.openvino_file import PROPERTIES, openvino_core, read_openvino, save_openvino
from repvgg_mm.export.onnx_graph import to_onnx

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def content_of(seed: int) -> tuple[nn.Module, bytes]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    return network, to_onnx(network, IMAGE, ['pooled']).SerializeToString()


def test_what_openvino_reads_is_the_graph():
    network, content = content_of(0)
    compiled = openvino_core().compile_model(read_openvino(content), 'CPU', PROPERTIES['fp32'])
    np.testing.assert_allclose(compiled(IMAGE.numpy())[0], network(IMAGE).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_graph_that_openvino_cannot_read():
    unknown = onnx.ModelProto.FromString(content_of(0)[1])
    unknown.graph.node[0].op_type = 'Unheard'
    with pytest.raises(UserError, match=r'OpenVINO reads the exported graph, and cannot \(.*Export with --engine onnx'):
        read_openvino(unknown.SerializeToString())


def test_files_in_use_are_replaced_and_not_written_into(tmp_path):
    path = tmp_path / 'engine.xml'
    save_openvino(read_openvino(content_of(0)[1]), path)
    weights = path.with_suffix('.bin')
    before = weights.read_bytes()
    with weights.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        save_openvino(read_openvino(content_of(1)[1]), path)
        assert mapped[:] == before
    assert weights.read_bytes() != before


SIGNALS = """
import faulthandler, pathlib, signal, subprocess, sys
faulthandler.enable()  # handlers of signals have a stack of their own
signal.signal(signal.SIGCHLD, lambda *arguments: None)  # as a data loader with workers sets one
from repvgg_mm.engine.engine import Engine
paths = [pathlib.Path(path) for path in sys.argv[1:]]
engines = [Engine(path) for path in paths]
while engines:
    del engines[0]  # in the order in which they began
subprocess.run([sys.executable, '-c', ''])
print('still here')
"""


def test_signals_after_engines_that_are_gone(segmentor):
    path = segmentor.engine('openvino').path
    result = subprocess.run([sys.executable, '-c', SIGNALS, path, path], capture_output=True, text=True, timeout=120)
    assert result.stdout == 'still here\n', (result.returncode, result.stderr)
