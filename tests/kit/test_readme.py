"""The page of a kit: its commands fit the engine, and those that are marked as run are run here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from engines import description

from repvgg_mm.engine.description import Input
from repvgg_mm.kit.readme import readme

SIZES = dict(opset=18, onnxruntime='1.32.0', calibration=3, expected=4)


def page_of(**changes: object) -> str:
    fixed = Input('image', 'float32', 'NCHW', [1, 3, 8, 8])
    return readme(replace(description(input=fixed), **changes), **SIZES)


def test_it_names_the_engine():
    page = page_of()
    assert page.startswith('# EncoderDecoder, fp32, as ONNX\n')
    assert '(opset 18) takes float32 images of (1, 3, 8, 8) (NCHW) named `image` and gives `pooled`' in page
    assert '{' not in re.sub(r'```.*?```', '', page, flags=re.DOTALL)


def test_each_tool_is_marked():
    titles = re.findall(r'^## (.*)$', page_of(), re.MULTILINE)
    marked = dict(re.fullmatch(r'(\S+).*\((run|not run)\)', title).groups() for title in titles[:-2])
    assert marked == {
        'ONNX': 'run', 'OpenVINO': 'run', 'TensorRT': 'not run', 'RKNN-Toolkit2': 'not run', 'Hailo': 'not run'}
    assert titles[-2:] == ['Qualcomm AI Runtime (not run)', 'Qualcomm AI Hub (not run)']


@pytest.mark.parametrize('layout, turned', [('NCHW', True), ('NHWC', False)])
def test_the_calibration_set_of_hailo_has_channels_last(layout, turned, tmp_path):
    shape = (1, 3, 2, 4) if turned else (1, 2, 4, 3)
    (tmp_path / 'calibration').mkdir()
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    for number, image in enumerate(images):
        np.save(tmp_path / f'calibration/{number}.npy', image)

    page = page_of(input=Input('image', 'float32', layout, list(shape)))
    command, = re.findall(r'one array \(N, H, W, 3\): `python -c "(.*)"`', page)
    subprocess.run([sys.executable, '-c', command], cwd=tmp_path, check=True)
    expected = images[:, 0].transpose(0, 2, 3, 1) if turned else images[:, 0]
    np.testing.assert_array_equal(np.load(tmp_path / 'calibration.npy'), expected)


def test_the_program_for_openvino_agrees(kit, tmp_path):
    copied = shutil.copytree(kit, tmp_path / 'kit')
    program, = (text for text in re.findall(r'```python\n(.*?)```', (copied / 'README.md').read_text(), re.DOTALL)
                if 'import openvino' in text)
    subprocess.run([sys.executable, '-c', program], cwd=copied, check=True)
    checked = subprocess.run([sys.executable, 'check.py', 'outputs'], cwd=copied, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.endswith('All outputs agree.\n')


def test_the_python_of_other_tools_compiles():
    programs = re.findall(r'```python\n(.*?)```', page_of(), re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        assert compile(program, 'README.md', 'exec').co_names
