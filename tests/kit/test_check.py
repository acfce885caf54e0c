"""The script of a kit: it agrees with the engine that was handed over, and with no other."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repvgg_mm.kit import check

INT8 = dict(precision='int8')
OTHERS = ('torch', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'onnx', 'openvino', 'repvgg_mm')
ALONE = ('import runpy, sys; sys.modules.update(dict.fromkeys({blocked!r})); sys.argv = sys.argv[1:]; '
         'runpy.run_path("check.py", run_name="__main__")')


def run_check(folder: Path, *arguments: object, blocked: tuple = OTHERS) -> subprocess.CompletedProcess:
    """As on a machine without this project."""
    command = [sys.executable, '-c', ALONE.format(blocked=blocked), 'check.py', *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copied(kit, tmp_path) -> Path:
    return shutil.copytree(kit, tmp_path / 'kit')


def change_weight(path: Path, factor: float) -> None:
    """Of the one weight of the engine that is largest."""
    import onnx
    model = onnx.load(path)
    convolution = next(node for node in model.graph.node if node.op_type == 'Conv')
    stored, = (one for one in model.graph.initializer if one.name == convolution.input[1])
    weights = onnx.numpy_helper.to_array(stored).copy()
    weights.flat[np.abs(weights).argmax()] *= factor
    stored.CopyFrom(onnx.numpy_helper.from_array(weights, stored.name))
    onnx.save(model, path)


def test_it_agrees_by_onnxruntime_and_numpy_alone(copied):
    result = run_check(copied)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count('(at most 0.001)') == 4
    assert result.stdout.endswith('All outputs agree.\n')


def test_a_weight_that_was_changed_a_little(copied):
    change_weight(copied / 'engine.onnx', 1 + 1e-6)
    result = run_check(copied)
    assert result.returncode == 1
    assert 'engine.onnx was changed: it is not the file that engine.json describes' in result.stdout
    assert result.stdout.endswith('The outputs do not agree with the expected ones.\n')


def test_a_weight_that_was_changed_and_described_anew(copied):
    change_weight(copied / 'engine.onnx', -3)
    meta = json.loads((copied / 'engine.json').read_text())
    meta['files']['engine.onnx'] = hashlib.sha256((copied / 'engine.onnx').read_bytes()).hexdigest()
    (copied / 'engine.json').write_text(json.dumps(meta))
    result = run_check(copied)
    assert result.returncode == 1
    assert 'image 0: logits differs by ' in result.stdout and 'was changed' not in result.stdout


def test_outputs_of_a_device(copied):
    nothing = (*OTHERS, 'onnxruntime')
    assert run_check(copied, 'expected', blocked=nothing).returncode == 0

    outputs = shutil.copytree(copied / 'expected', copied / 'device')
    logits = np.load(outputs / '2_logits.npy')
    logits.flat[5] += 0.05 * np.abs(logits).max()
    np.save(outputs / '2_logits.npy', logits)
    result = run_check(copied, 'device', blocked=nothing)
    assert result.returncode == 1 and 'image 2: logits differs by 5.0e-02, more than 0.001' in result.stdout
    assert run_check(copied, 'device', 0.06, blocked=nothing).returncode == 0

    np.save(outputs / '1_logits.npy', logits[:, :1])
    (outputs / '3_logits.npy').unlink()
    result = run_check(copied, 'device', 0.06, blocked=nothing)
    assert result.returncode == 1
    assert 'image 1: logits has the shape' in result.stdout and "'device/3_logits.npy'" in result.stdout


def test_nothing_to_compare_is_no_agreement(copied):
    shutil.rmtree(copied / 'expected')
    result = run_check(copied, copied)
    assert result.returncode == 1 and result.stderr == ''
    assert 'expected/ holds no inputs, so nothing was compared' in result.stdout
    assert result.stdout.endswith('The outputs do not agree with the expected ones.\n')


def test_expected_outputs_that_are_damaged(copied):
    (copied / 'expected' / '0_logits.npy').write_bytes(b'')
    (copied / 'expected' / '2_logits.npy').unlink()
    result = run_check(copied)
    assert result.returncode == 1 and result.stderr == ''
    assert 'image 0: No data left in file' in result.stdout and 'image 2: [Errno 2]' in result.stdout


def test_without_onnxruntime_it_says_what_to_do(copied):
    result = run_check(copied, blocked=(*OTHERS, 'onnxruntime'))
    assert result.returncode == 1 and 'run "python check.py OUTPUTS"' in result.stderr


def test_values_that_are_no_numbers_do_not_agree():
    error, = check.compare(dict(logits=np.ones(3)), dict(logits=np.array([1, 1, np.nan])), {}).values()
    assert not error <= 1e9


def test_label_maps_are_compared_by_pixels():
    labels = np.zeros((1, 10, 10), np.uint8)
    other = labels.copy()
    other[0, 0, :3] = 200
    assert check.compare(dict(labels=labels), dict(labels=other), {}) == dict(labels=0.03)


def test_values_in_int8_are_compared_by_root_mean_squares():
    expected, other = np.full(8, 3.), np.full(8, 3.)
    other[:2] += 0.6
    assert check.compare(dict(scores=expected), dict(scores=other), {})['scores'] == pytest.approx(0.2)
    assert check.compare(dict(scores=expected), dict(scores=other), INT8)['scores'] == pytest.approx(0.1)


def test_label_maps_have_a_tolerance_of_their_own(copied):
    meta = json.loads((copied / 'engine.json').read_text()) | dict(precision='fp16', outputs=['labels'])
    (copied / 'engine.json').write_text(json.dumps(meta))
    (copied / 'device').mkdir()
    labels = np.zeros((1, 100, 100), np.uint8)
    for number in range(4):
        np.save(copied / f'expected/{number}_labels.npy', labels)
        np.save(copied / f'device/{number}_labels.npy', labels)
    labels.flat[:50] = 1
    np.save(copied / 'device/2_labels.npy', labels)
    assert run_check(copied, 'device').returncode == 0

    labels.flat[-1] = 1
    np.save(copied / 'device/2_labels.npy', labels)
    result = run_check(copied, 'device')
    assert result.returncode == 1 and 'image 2: labels differs by 5.1e-03, more than 0.005' in result.stdout


def detections(count: int) -> dict[str, np.ndarray]:
    """Boxes in pixels up to 100, with two more rows that are empty."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((1, count + 2, 4))
    boxes[0, :count] = rng.uniform(0, 100, (count, 4))
    boxes[0, 0] = [0, 0, 100, 100]
    scores, labels = np.zeros((1, count + 2)), np.full((1, count + 2), -1)
    scores[0, :count] = np.linspace(1, 0.5, count)
    labels[0, :count] = rng.integers(0, 3, count)
    return dict(boxes=boxes, scores=scores, labels=labels)


def error_of(expected: dict, found: dict, precision: str = 'fp32') -> float:
    return check.compare(expected, found, dict(nms='inside', precision=precision))['detections']


def test_detections_are_compared_by_partners_in_any_order():
    expected = detections(10)
    turned = {name: array[:, ::-1] for name, array in expected.items()}
    assert error_of(expected, turned) == 0

    moved = {name: array.copy() for name, array in expected.items()}
    moved['boxes'][0, :10, 1] += 2
    assert error_of(expected, moved) == pytest.approx(0.02)


def test_of_twenty_detections_one_may_be_decided_by_rounding():
    expected = detections(40)
    other = {name: array.copy() for name, array in expected.items()}
    other['labels'][0, :2] = 7
    assert error_of(expected, other) == 0
    other['labels'][0, :3] = 7
    assert error_of(expected, other) > 0.1


def test_in_int8_weak_detections_may_come_and_go():
    expected = detections(10)
    expected['scores'][0, 6:10] = 0.29
    other = {name: array.copy() for name, array in expected.items()}
    other['labels'][0, 6:10] = 7
    assert error_of(expected, other) == np.inf
    assert error_of(expected, other, 'int8') == 0

    other['scores'][0, 0] = np.nan
    assert error_of(expected, other, 'int8') == np.inf


def test_an_empty_result_agrees_with_an_empty_one_alone():
    nothing, something = detections(0), detections(2)
    nothing = {name: np.concatenate([array] * 2, 1) for name, array in nothing.items()}
    for precision in ('fp32', 'int8'):
        assert error_of(nothing, nothing, precision) == 0
        assert error_of(nothing, something, precision) == np.inf
        assert error_of(something, nothing, precision) == np.inf

    something['scores'][:] = np.nan
    assert error_of(nothing, something) == np.inf
