"""Engines in a program: what they say of files, libraries and images that do not fit."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import description, quiet
from tool_runs import ROOT
from torch import nn

from repvgg_mm import UserError
from repvgg_mm.demo.shapes import CLASSES
from repvgg_mm.engine.description import is_engine
from repvgg_mm.engine.engine import Engine
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import export
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.export.target import Target

WITHOUT_TORCH = ('import sys; sys.modules.update(dict.fromkeys(["torch", "mmengine", "mmcv", "mmseg", "mmdet", '
                 '"repvgg_mm"])); exec(open(sys.argv[1]).read())')


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> dict[str, Path]:
    """A 2x average pooling as an engine of each library, for images of any height."""
    graph = to_onnx(nn.AvgPool2d(2), torch.zeros(2, 3, 8, 8), ['pooled'], dynamic=[2])
    folders = {}
    for engine in ('onnx', 'openvino'):
        folders[engine] = tmp_path_factory.mktemp(engine)
        write_engine(graph, description(engine=engine), folders[engine])
    return folders


def engine_in(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if is_engine(path))


@pytest.fixture(params=['onnx', 'openvino'])
def folder(request, folders, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(folders[request.param], tmp_path / 'engine')


def test_files(folders):
    assert sorted(path.name for path in folders['onnx'].iterdir()) == ['engine.json', 'engine.onnx']
    assert {'engine.json', 'engine.xml'} <= {path.name for path in folders['openvino'].iterdir()}


@pytest.mark.parametrize('convert', [np.asarray, torch.from_numpy, lambda x: np.asfortranarray(x)])
def test_arrays_and_tensors(folder, convert):
    engine = Engine(engine_in(folder), threads=1)
    first = np.random.default_rng(0).standard_normal((2, 3, 6, 8), dtype=np.float32)
    found = engine(convert(first))
    expected = nn.AvgPool2d(2)(torch.from_numpy(first))
    torch.testing.assert_close(torch.from_numpy(found['pooled']), expected)
    engine(first + 1)  # a later call does not change what an earlier one gave
    torch.testing.assert_close(torch.from_numpy(found['pooled']), expected)
    assert list(found) == ['pooled'] and engine.computed_in == 'f32'


@pytest.mark.parametrize('images', [
    np.zeros((1, 3, 8, 8), np.float32), np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 0, 8), np.float32),
    np.zeros((3, 8, 8), np.float32)])
def test_images_that_do_not_fit(folder, images):
    with pytest.raises(UserError, match=re.escape(
            f'takes float32 images of (2, 3, any, 8) (NCHW), got {images.dtype} of {images.shape}. Feed it')):
        Engine(engine_in(folder))(images)


def test_missing_files(folder):
    path = engine_in(folder)
    with pytest.raises(UserError, match=r'An engine is a file in \.onnx, \.xml, \.plan, and .*absent\.onnx is missing'):
        Engine(folder / 'absent.onnx')
    with pytest.raises(UserError, match=r'engine\.json is none'):
        Engine(folder / 'engine.json')
    path.with_suffix('.json').unlink()
    with pytest.raises(UserError, match=r'its description, engine\.json, .*FileNotFoundError.*Copy all files'):
        Engine(path)
    path.with_suffix('.json').write_text('{}')
    with pytest.raises(UserError, match=r"has a field 'task', and .*engine\.json has none\. Copy all files"):
        Engine(path)


def test_files_of_two_exports(folder):
    path = engine_in(folder)
    path.write_bytes(path.read_bytes() + b' ')
    with pytest.raises(UserError, match=rf'belong to one export, and {path.name} is not the file that'):
        Engine(path)


def test_a_file_that_the_library_cannot_load(folder):
    path = engine_in(folder)
    content = b'\x12\x05graph'
    path.write_bytes(content)
    meta = json.loads(path.with_suffix('.json').read_text())
    meta['files'][path.name] = hashlib.sha256(content).hexdigest()
    path.with_suffix('.json').write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r'is a file that .* can load, and .* is not .*Export it again'):
        Engine(path)


@pytest.mark.parametrize('part', ['input', 'output'])
def test_names_that_the_graph_does_not_have(folder, part):
    path = engine_in(folder)
    meta = json.loads(path.with_suffix('.json').read_text())
    if part == 'input':
        meta['input']['name'] = 'other'
    else:
        meta['outputs'] = ['pooled', 'other']
    path.with_suffix('.json').write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"with \['image'\] and \['pooled'\] has no other\. Copy all files"):
        Engine(path)


def test_a_missing_library_names_the_pip_command(folder, monkeypatch):
    path = engine_in(folder)
    library = 'onnxruntime' if path.suffix == '.onnx' else 'openvino'
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}, .*pip install -e '\.\[export\]'"):
        Engine(path)


@pytest.mark.parametrize('library', ['onnxruntime', 'openvino'])
def test_the_documented_program_runs_without_torch(library, segmentor, tmp_path):
    programs = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/export.md').read_text(), re.DOTALL)
    program, = (text for text in programs if f'import {library}\n' in text and 'work_dirs/engine/' in text)
    assert len(program.splitlines()) <= 20
    engine = dict(onnxruntime='onnx', openvino='openvino')[library]
    target = Target(engine, shape=(96, 96), preprocess=True, argmax=True)
    export(segmentor.cfg, segmentor.checkpoint, tmp_path / 'work_dirs/engine', target, progress=quiet)
    (tmp_path / 'program.py').write_text(program)
    result = subprocess.run([sys.executable, '-c', WITHOUT_TORCH, 'program.py'], cwd=tmp_path, capture_output=True,
                            text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    labels = Engine(next((tmp_path / 'work_dirs/engine').glob('engine.[ox]*[xl]')))(
        np.full((1, 96, 96, 3), 128, np.uint8))['labels']
    assert {name for name in CLASSES if name in result.stdout} == {CLASSES[label] for label in np.unique(labels)}
    shutil.rmtree(tmp_path / 'work_dirs')
    gone = subprocess.run([sys.executable, '-c', WITHOUT_TORCH.replace('exec', 'import torch; exec'), 'program.py'],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert 'import of torch halted' in gone.stderr  # the isolation isolates


@pytest.mark.parametrize('library', ['onnxruntime', 'openvino'])
def test_the_documented_program_of_a_detector_runs_without_torch(library, retinanet, tmp_path):
    programs = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/export.md').read_text(), re.DOTALL)
    program, = (text for text in programs if f'import {library}\n' in text and 'work_dirs/detector/' in text)
    assert len(program.splitlines()) <= 20
    engine = dict(onnxruntime='onnx', openvino='openvino')[library]
    target = Target(engine, shape=(80, 80), preprocess=True, nms=True)
    exported = export(
        retinanet.cfg, retinanet.checkpoint, tmp_path / 'work_dirs/detector', target, progress=quiet)
    (tmp_path / 'program.py').write_text(program)
    result = subprocess.run([sys.executable, '-c', WITHOUT_TORCH, 'program.py'], cwd=tmp_path, capture_output=True,
                            text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    labels = Engine(exported.path)(np.full((1, 80, 80, 3), 128, np.uint8))['labels'][0]
    names = [exported.description.classes[label] for label in labels if label >= 0]
    assert names and [line.split()[0] for line in result.stdout.splitlines()] == names


@pytest.mark.skipif(not shutil.which('g++'), reason='needs a compiler: g++')
def test_the_documented_program_in_cpp(segmentor, tmp_path):
    import openvino
    package = Path(openvino.__file__).parent
    library = next((package / 'libs').glob('libopenvino.so.*'), None)
    if library is None or not (package / 'include').is_dir():
        pytest.skip('needs the headers and the library of OpenVINO for Linux')
    program = tmp_path / 'program'
    subprocess.run(
        ['g++', '-std=c++17', ROOT / 'docs/engine.cpp', '-o', program, '-I', package / 'include', library,
         f'-Wl,-rpath,{library.parent}'], check=True)
    target = Target('onnx', shape=(96, 96), preprocess=True, argmax=True)
    exported = export(segmentor.cfg, segmentor.checkpoint, tmp_path / 'engine', target, progress=quiet)
    result = subprocess.run([program, exported.path], capture_output=True, text=True, check=True)
    labels = Engine(exported.path)(np.full((1, 96, 96, 3), 128, np.uint8))['labels']
    assert [int(line) for line in result.stdout.split()] == np.unique(labels).tolist()


def test_the_documented_import_needs_no_torch(retinanet, tmp_path):
    programs = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/export.md').read_text(), re.DOTALL)
    program, = (text for text in programs if 'import Engine, detect\n' in text)
    images = "import numpy as np\nimages = np.zeros((1, 3, 96, 96), np.float32)\n"
    folder = str(retinanet.engine_file('onnx').parent)
    (tmp_path / 'program.py').write_text(f'{images}{program}print(detections)\n'.replace("'DIR/", f"'{folder}/"))
    without = WITHOUT_TORCH.replace(', "repvgg_mm"', '')
    result = subprocess.run([sys.executable, '-c', without, 'program.py'], cwd=tmp_path, capture_output=True,
                            text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('[Detections(boxes=array(')
