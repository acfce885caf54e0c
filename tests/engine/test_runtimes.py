"""Libraries and devices: what each can use, what computes, and what is refused rather than computed elsewhere.

TensorRT and CUDA are not here. Refusals are those of the real libraries; a plan is run by a stand-in for TensorRT,
which shows that its names, types and sizes are compared and its outputs come in order, and nothing of TensorRT itself.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import description
from torch import nn

from repvgg_mm import UserError
from repvgg_mm.engine.description import Input, write_description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.openvino_file import openvino_core
from repvgg_mm.engine.runtimes import PROVIDERS, Device, device_of
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.onnx_graph import to_onnx

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
IMAGES = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
INPUT = Input('image', 'float32', 'NCHW', [1, 3, 8, 8])


class TwoOutputs(nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = nn.functional.avg_pool2d(image, 2)
        return pooled, pooled.argmax(1)


def written(folder: Path, **changes: object) -> Path:
    """An engine with the outputs `pooled` and `labels` in `folder`."""
    described = description(input=INPUT, outputs=['pooled', 'labels'])
    graph = to_onnx(TwoOutputs(), torch.from_numpy(IMAGES), described.outputs)
    path, _ = write_engine(graph, replace(described, **changes), folder)
    return path


def assert_right(outputs: dict[str, np.ndarray]) -> None:
    pooled, labels = TwoOutputs()(torch.from_numpy(IMAGES))
    assert list(outputs) == ['pooled', 'labels']
    torch.testing.assert_close(torch.from_numpy(outputs['pooled']), pooled)
    assert np.array_equal(outputs['labels'], labels.numpy())


# ---- devices

@pytest.mark.parametrize('library, name, device', [
    ('onnxruntime', None, Device('cpu')), ('onnxruntime', 'cpu', Device('cpu')), ('openvino', None, Device('cpu')),
    ('onnxruntime', 'cuda', Device('cuda')), ('onnxruntime', 'cuda:1', Device('cuda', 1)),
    ('onnxruntime', 'tensorrt:2', Device('tensorrt', 2)), ('openvino', 'gpu', Device('gpu')),
    ('tensorrt', None, Device('cuda'))])
def test_a_device_as_a_user_names_it(library, name, device):
    assert device_of(library, name) == device
    assert str(device) == (name or device.kind)


@pytest.mark.parametrize('library, name', [
    ('onnxruntime', 'gpu'), ('onnxruntime', 'cpu:1'), ('onnxruntime', 'CUDA'), ('onnxruntime', 'cuda:'),
    ('onnxruntime', 'cuda:-1'), ('onnxruntime', ''), ('openvino', 'cuda'), ('tensorrt', 'cpu')])
def test_a_device_that_a_library_does_not_have(library, name):
    with pytest.raises(UserError, match=rf'{library} runs an engine on .*, and --device {name} was asked for\. Choose'):
        device_of(library, name)


@pytest.mark.parametrize('engine, device', [('onnx', None), ('onnx', 'cpu'), ('openvino', None), ('openvino', 'cpu')])
def test_the_cpu(engine, device, tmp_path):
    loaded = Engine(written(tmp_path, engine=engine), device=device, threads=1)
    assert loaded.device == 'cpu' and loaded.computed_in in ('f32', 'bf16')
    assert_right(loaded(IMAGES))


# ---- ONNX Runtime

@pytest.mark.parametrize('device', ['cuda', 'cuda:1', 'tensorrt'])
def test_a_provider_that_is_not_installed(device, tmp_path):
    provider = PROVIDERS[device.split(':')[0]]
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f'{provider} is installed')
    with pytest.raises(UserError, match=rf'--device {device} is {provider} of ONNX Runtime, and this installation '
                                        r'has .*CPUExecutionProvider\. .*pip install "onnxruntime-gpu\[cuda,cudnn\]"'):
        Engine(written(tmp_path), device=device)


@pytest.mark.filterwarnings('ignore:Specified provider')
@pytest.mark.parametrize('device', ['cuda', 'tensorrt'])
def test_a_provider_that_falls_back_to_the_cpu(device, tmp_path, monkeypatch):
    """As onnxruntime-gpu does where CUDA cannot be loaded: it is listed, and a session computes on the CPU instead."""
    if torch.cuda.is_available():
        pytest.skip('CUDA is here')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: list(PROVIDERS.values()))
    with pytest.raises(UserError, match=rf'--device {device} needs a GPU, CUDA.* {PROVIDERS[device]} could not load '
                                        r'.*engine\.onnx \(.*\)\. Install the versions'):
        Engine(written(tmp_path), device=device)


def test_an_int8_engine_is_not_computed_without_integer_kernels(tmp_path):
    path = written(tmp_path, precision='int8')
    with pytest.raises(UserError, match=r'CUDA provider has no integer kernels for convolutions, and .*engine\.onnx is '
                                        r'in int8\. Use --device tensorrt or cpu'):
        Engine(path, device='cuda')
    assert_right(Engine(path)(IMAGES))


@pytest.mark.parametrize('part, message', [('opset', 'till opset'), ('ir_version', 'Unsupported model IR version: 99')])
def test_a_graph_that_is_newer_than_the_library(part, message, tmp_path):
    path = written(tmp_path)
    model = onnx.load(path)
    if part == 'opset':
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    path.write_bytes(model.SerializeToString())
    write_description(path, description(input=INPUT, outputs=['pooled', 'labels']))
    version = onnxruntime.__version__.replace('.', r'\.')
    with pytest.raises(UserError, match=rf'can load, and .*engine\.onnx is not \([^(]*{message}.*\)\. Install a newer '
                                        rf'onnxruntime than {version}, or export it again'):
        Engine(path)


def test_a_graph_that_is_older_than_every_operator(tmp_path):
    path = written(tmp_path)
    model = onnx.load(path)
    model.opset_import[0].version = 0
    path.write_bytes(model.SerializeToString())
    write_description(path, description(input=INPUT, outputs=['pooled', 'labels']))
    with pytest.raises(UserError, match=r'can load, and .*engine\.onnx is not \(.*version.*\)\. Export it again'):
        Engine(path)


# ---- OpenVINO

def test_a_device_that_openvino_does_not_find(tmp_path):
    pytest.importorskip('openvino')
    if openvino_core().available_devices != ['CPU']:
        pytest.skip('OpenVINO finds more than a CPU')
    with pytest.raises(UserError, match=r'that it finds, here CPU, and --device gpu:1 was asked for\. Install the'):
        Engine(written(tmp_path, engine='openvino'), device='gpu:1')


# ---- TensorRT

class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


class Plan:
    """What TensorRT would make of the ONNX graph in a plan; `changes` are those of another engine's."""

    def __init__(self, content: bytes, changes: dict) -> None:
        self.session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
        self.outputs = [part.name for part in self.session.get_outputs()]
        self.names = changes.get('names', [*reversed(self.outputs), 'image'])
        self.num_io_tensors = len(self.names)
        self.dtype = changes.get('dtype', np.float32)
        self.shape = changes.get('shape', (1, 3, 8, 8))

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.OUTPUT if name in self.outputs else Mode.INPUT

    def get_tensor_dtype(self, name: str) -> type:
        return self.dtype

    def get_tensor_shape(self, name: str) -> tuple:
        return self.shape


class Runner:
    """Gives the outputs in another order, in memory that the next call writes to, as Polygraphy's does."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.memory = {}
        self.active = False

    def activate(self) -> None:
        self.active = True

    def deactivate(self) -> None:
        self.active = False

    def infer(self, feed: dict) -> dict:
        assert self.active
        found = self.plan.session.run(self.plan.outputs, feed)
        for name, array in reversed([*zip(self.plan.outputs, found)]):
            self.memory.setdefault(name, np.empty_like(array))[...] = array
        return self.memory


@pytest.fixture
def tensorrt(monkeypatch) -> dict:
    """A stand-in, whose plans are ONNX files. What is put into the dict is another engine's."""
    changes: dict = {}

    def deserialize(content: bytes) -> Plan | None:
        return None if content == b'of another GPU' else Plan(content, changes)

    library = SimpleNamespace(
        __version__='11.4.0', TensorIOMode=Mode, nptype=lambda dtype: dtype,
        Logger=type('Logger', (), dict(ERROR=1, __init__=lambda self, severity: None)),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize))
    monkeypatch.setitem(sys.modules, 'tensorrt', library)
    monkeypatch.setitem(sys.modules, 'polygraphy', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'polygraphy.backend', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'polygraphy.backend.trt', SimpleNamespace(TrtRunner=Runner))
    return changes


@pytest.fixture
def plan(tmp_path) -> Path:
    """Beside the engine that it was built of."""
    path = written(tmp_path)
    plan = path.with_suffix('.plan')
    plan.write_bytes(path.read_bytes())
    return plan


def test_a_plan_beside_its_description(tensorrt, plan):
    engine = Engine(plan)
    assert (engine.library, engine.device, engine.computed_in) == ('tensorrt', 'cuda', 'tf32')
    found = engine(IMAGES)
    engine(IMAGES + 1)  # a later call does not change what an earlier one gave
    assert_right(found)


def test_the_engine_need_not_be_beside_its_plan(tensorrt, plan):
    plan.with_suffix('.onnx').unlink()
    assert_right(Engine(plan)(IMAGES))


def test_an_engine_of_another_export_beside_a_plan(tensorrt, plan):
    plan.with_suffix('.onnx').write_bytes(b'other')
    with pytest.raises(UserError, match=r'belong to one export, and engine\.onnx is not the file that'):
        Engine(plan)


@pytest.mark.parametrize('changes, message', [
    (dict(names=['labels', 'image']), 'has no pooled'), (dict(names=['pooled', 'labels', 'x']), 'has no image'),
    (dict(dtype=np.float16), 'takes float16 of'), (dict(shape=(1, 3, 16, 8)), r'of \(1, 3, 16, 8\)'),
    (dict(shape=(-1, 3, 8, 8)), r'of \(-1, 3, 8, 8\)'), (dict(shape=(3, 8, 8)), r'of \(3, 8, 8\)')])
def test_a_plan_of_another_engine(tensorrt, plan, changes, message):
    tensorrt.update(changes)
    with pytest.raises(UserError, match=message):
        Engine(plan)


def test_a_plan_of_a_dynamic_engine(tensorrt, plan):
    dynamic = description(input=replace(INPUT, shape=[None, 3, None, None]), outputs=['pooled', 'labels'])
    write_description(plan.with_suffix('.onnx'), dynamic)
    tensorrt.update(shape=(-1, 3, 8, 8))
    assert_right(Engine(plan)(IMAGES))


def test_a_plan_for_another_gpu(tensorrt, plan):
    plan.write_bytes(b'of another GPU')
    with pytest.raises(UserError, match=r'TensorRT 11\.4\.0 cannot load .*engine\.plan here \(its reason is printed '
                                        r'above\)\. Build it again here'):
        Engine(plan)


def test_a_plan_beside_the_description_of_another_kind(tensorrt, tmp_path):
    written(tmp_path, engine='openvino').with_suffix('.plan').write_bytes(b'')
    with pytest.raises(UserError, match=r'A plan is built of an engine in \.onnx .* describes one of openvino'):
        Engine(tmp_path / 'engine.plan')


def test_a_second_gpu_of_a_plan(tensorrt, plan):
    with pytest.raises(UserError, match=r'first GPU that the process sees, .*CUDA_VISIBLE_DEVICES=1'):
        Engine(plan, device='cuda:1')


@pytest.mark.parametrize('absent', ['tensorrt', 'polygraphy.backend.trt'])
def test_a_plan_without_tensorrt(tensorrt, plan, absent, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=rf'needs {absent}, .*beside CUDA: pip install tensorrt polygraphy'):
        Engine(plan)


def test_a_plan_without_a_description(plan):
    plan.with_suffix('.json').unlink()
    with pytest.raises(UserError, match=r'its description, engine\.json, .*Copy all files'):
        Engine(plan)


@pytest.mark.parametrize('precision, computed_in', [('fp32', 'tf32'), ('fp16', 'f16'), ('int8', 'tf32')])
def test_what_tensorrt_computes_in(tensorrt, tmp_path, precision, computed_in):
    path = written(tmp_path, precision=precision)
    plan = path.with_suffix('.plan')
    plan.write_bytes(path.read_bytes())
    assert Engine(plan).computed_in == computed_in
