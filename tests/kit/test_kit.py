"""The folder to hand over: what is in it, what is not, and what is refused before the work."""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from tool_runs import ROOT, run_tool

from repvgg_mm import UserError
from repvgg_mm.engine.engine import Engine
from repvgg_mm.export.target import Target
from repvgg_mm.kit.kit import check_kit

INSIDE = ['README.md', 'calibration', 'check.py', 'engine.json', 'engine.onnx', 'expected']


def test_what_is_in_a_kit(kit):
    assert sorted(os.listdir(kit)) == INSIDE
    assert sorted(os.listdir(kit / 'calibration')) == ['0000.npy', '0001.npy', '0002.npy', 'names.txt']
    files = [f'{image}_{name}.npy' for image in range(4) for name in ('image', 'logits')]
    assert sorted(os.listdir(kit / 'expected')) == [*files, 'names.txt']


def test_calibration_inputs_are_training_pictures_as_the_engine_is_fed(kit, segmentor):
    from mmcv import imread, imresize
    root = Path(segmentor.cfg.train_dataloader.dataset.data_root)
    pictures = sorted((root / 'images/train').glob('*.jpg'))
    assert (kit / 'calibration/names.txt').read_text().splitlines() == [one.name for one in pictures[::2]]

    for number, picture in enumerate(pictures[::2]):
        expected = imresize(imread(picture), (80, 80))
        np.testing.assert_array_equal(np.load(kit / f'calibration/{number:04}.npy'), expected[None])


def test_expected_outputs_are_those_of_the_engine_on_validation_pictures(kit, segmentor):
    root = Path(segmentor.cfg.val_dataloader.dataset.data_root)
    pictures = {path.name for path in (root / 'images/val').glob('*.jpg')}
    names = (kit / 'expected/names.txt').read_text().splitlines()
    assert len(set(names)) == 4 and set(names) <= pictures

    engine = Engine(kit / 'engine.onnx')
    for number in range(4):
        outputs = engine(np.load(kit / f'expected/{number}_image.npy'))
        np.testing.assert_allclose(
            np.load(kit / f'expected/{number}_logits.npy'), outputs['logits'], rtol=1e-4, atol=1e-4)


def test_nothing_in_a_kit_tells_of_the_machine_that_made_it(kit, segmentor):
    paths = [str(Path.home()), str(ROOT), os.getcwd(), str(segmentor.folder), str(kit.parent)]
    names = [getpass.getuser(), socket.gethostname()]
    for path in kit.rglob('*'):
        if not path.is_file():
            continue
        content = path.read_bytes()
        told = [*paths, *names]
        if path.suffix in ('.onnx', '.npy'):  # among random bytes are all short words
            told = [text for text in told if len(text) >= 5]
        found = [text for text in told if re.search(rf'(?<!\w){re.escape(text)}(?!\w)'.encode(), content)]
        assert found == [], path


def test_a_kit_into_a_folder_that_exists(kit, segmentor):
    refused = run_tool(
        'tools/export.py', segmentor.path, 'missing.pth', '--out', kit.parent / 'other', '--kit', kit, check=False)
    assert refused.returncode == 1
    assert f'--kit is a new or empty folder, and {kit} holds 6 files' in refused.stderr
    assert not (kit.parent / 'other').exists()


@pytest.mark.parametrize('target, error', [
    (Target('openvino'), r'--kit was given with --engine openvino\. Leave --engine out'),
    (Target(dynamic=True), r'--kit was given with --dynamic\. Leave one of them out')])
def test_an_engine_that_tools_of_devices_do_not_take(segmentor, tmp_path, target, error):
    with pytest.raises(UserError, match=error):
        check_kit(segmentor.cfg, tmp_path / 'kit', tmp_path / 'engine', target, overwrite=False)


def test_a_kit_in_the_place_of_the_engine(segmentor, tmp_path):
    with pytest.raises(UserError, match=r'--kit is a folder of its own'):
        check_kit(segmentor.cfg, tmp_path / 'kit', tmp_path / 'a/../kit', Target(), overwrite=True)


def test_no_training_data(segmentor, tmp_path):
    cfg = segmentor.cfg
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'missing')
    with pytest.raises(UserError, match=r'images/train .* are missing: put the dataset there'):
        check_kit(cfg, tmp_path / 'kit', tmp_path / 'engine', Target(), overwrite=False)
