"""Trainings keep to their own folders: one at a time, nothing removed elsewhere, nothing half written left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY
from tool_runs import ROOT, assert_refused, derived_config, iterations, run_tool, small_data

from repvgg_mm import read_checkpoint
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.files.checkpoint import write_checkpoint
from repvgg_mm.training.work_dir import LOCK, AtomicLocalBackend, claim, keep_to_folders

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    return derived_config(tmp_path_factory.mktemp('config') / 'small.py', f"""
model = dict(
    data_preprocessor=dict(size=(48, 48)), backbone=dict(arch=dict(_delete_=True, **{TINY})),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
""")


@pytest.fixture(scope='module')
def flags(tmp_path_factory) -> list[str]:
    shapes = make_shapes(tmp_path_factory.mktemp('shapes'), num_train=4, num_val=2, size=48)
    return ['--cfg-options', *small_data(shapes)]


def test_the_checkpoint_before_stays_until_the_new_one_is_written(tmp_path):
    """mmengine's CheckpointHook removes the oldest one first, with max_keep_ckpts=1 the only one."""
    first, second, other = tmp_path / 'iter_1.pth', tmp_path / 'iter_2.pth', tmp_path / 'other.txt'
    for path in (first, other):
        AtomicLocalBackend().put(b'whole', path)
        AtomicLocalBackend().remove(path)
    assert first.exists() and not other.exists()
    with pytest.raises(TypeError):
        AtomicLocalBackend().put('no bytes', second)
    assert list(tmp_path.glob('*.pth')) == [first]
    AtomicLocalBackend().put(b'whole', second)
    assert list(tmp_path.iterdir()) == [second]
    AtomicLocalBackend().remove(second)
    AtomicLocalBackend().put(b'written anew', second)
    assert second.read_bytes() == b'written anew'


def test_resuming_a_copied_work_dir_leaves_the_first_one_alone(config, flags, tmp_path):
    """mmengine removes the best checkpoint that the resumed file names, which lies in the first one."""
    first, copy = tmp_path / 'first', tmp_path / 'copy'
    run_tool('tools/train.py', config, '--work-dir', first, *flags, *iterations(2))
    content = read_checkpoint(first / 'iter_2.pth')
    assert Path(content['message_hub']['runtime_info']['best_ckpt']).parent == first
    content['message_hub']['runtime_info']['best_score'] = -1.0  # so that the next one is better
    write_checkpoint(first / 'iter_2.pth', content)
    shutil.copytree(first, copy)
    before = sorted(path.name for path in first.iterdir())

    output = run_tool('tools/train.py', config, '--work-dir', copy, '--resume', *flags, *iterations(4)).stdout
    assert f'Resuming from {copy / "iter_2.pth"}' in output
    assert sorted(path.name for path in first.iterdir()) == before
    assert [path.name for path in copy.glob('best_*.pth')] == ['best_mIoU_iter_4.pth']


@pytest.mark.parametrize('elsewhere', ['best.pth', '../best.pth', '/etc/best.pth', 'C:\\runs\\best.pth', '..', ''])
def test_a_best_checkpoint_is_one_of_the_folder(elsewhere, tmp_path):
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'best.pth').touch()
    info = dict(best_ckpt=elsewhere, best_score=0.5, best_ckpt_mIoU=elsewhere, best_score_mIoU=0.5, other=1)
    keep_to_folders(info, [tmp_path / 'runs'])
    assert info == dict(other=1)

    (tmp_path / 'runs' / 'best.pth').touch()
    info = dict(best_ckpt=elsewhere, best_score=0.5)
    keep_to_folders(info, [tmp_path / 'runs'])
    own = dict(best_ckpt=str(tmp_path / 'runs' / 'best.pth'), best_score=0.5)
    assert info == (own if elsewhere.endswith('best.pth') else {})


@pytest.mark.parametrize('steps, kept', [([2, 4], True), (['/../../x'], False), ('24', False), ([True], False)])
def test_steps_that_are_kept_are_numbers(steps, kept, tmp_path):
    info = dict(keep_ckpt_ids=steps)
    keep_to_folders(info, [tmp_path])
    assert ('keep_ckpt_ids' in info) == kept


def test_a_second_training_is_refused_while_the_first_lives(config, flags, tmp_path):
    command = [sys.executable, 'tools/train.py', str(config), '--work-dir', str(tmp_path / 'work'), *flags]
    first = subprocess.Popen([*command, *iterations(100_000)], cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / 'work').glob('*/*.log')) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        second = run_tool(*command[1:], *iterations(1), check=False)
        assert_refused(second, 'One training at a time', str(tmp_path / 'work'), 'another --work-dir')
        assert first.poll() is None, first.stderr.read()[-2000:]
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    run_tool(*command[1:], *iterations(1))


def test_what_killed_saves_left_is_gone_at_the_next_start(tmp_path):
    kept = ['iter_2.pth', '.hidden', 'notes.txt', '.mine.pth', 'best_mIoU_iter_1.pth', 'iter_10.pth']
    left = ['.iter_4.pth.ab12cd_8', '.last_checkpoint.ab12cd_8', '.iter_1.pth.is_outdated', 'iter_1.pth',
            '.best_mIoU_iter_1.pth.is_outdated', '.iter_10.pth.is_outdated']
    for name in [*left, *kept]:  # from the oldest to the newest
        (tmp_path / name).touch()
        time.sleep(0.01)
    claim(tmp_path).release()
    assert {path.name for path in tmp_path.iterdir()} - {LOCK} == set(kept)


def test_a_kill_between_a_new_checkpoint_and_the_removal_of_the_old(tmp_path, monkeypatch):
    first, second = tmp_path / 'iter_1.pth', tmp_path / 'iter_2.pth'
    AtomicLocalBackend().put(b'whole', first)
    AtomicLocalBackend().remove(first)
    monkeypatch.setattr(AtomicLocalBackend, '_outdated', set())  # what a new process knows
    claim(tmp_path).release()
    assert first.exists()  # killed before the second was there: the first is all there is

    AtomicLocalBackend().remove(first)
    monkeypatch.setattr(AtomicLocalBackend, '_outdated', set())
    time.sleep(0.01)
    AtomicLocalBackend().put(b'whole', second)
    claim(tmp_path).release()
    assert {path.name for path in tmp_path.iterdir()} - {LOCK} == {'iter_2.pth'}
