"""An interrupted and resumed run ends like one that was not interrupted, bit by bit; a kill leaves whole files."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, leaves, retinanet_config
from tool_runs import ROOT, derived_config, iterations, run_tool, small_data

from repvgg_mm import read_checkpoint
from repvgg_mm.shapes import make_shapes

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=6, num_val=2, size=48)


def small_segmentor(folder: Path, *hooks: str) -> Path:
    return derived_config(folder / 'small.py', f"""
custom_hooks = [{', '.join(hooks)}]
model = dict(
    data_preprocessor=dict(size=(48, 48)), backbone=dict(arch=dict(_delete_=True, **{TINY})),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=8, by_epoch=False)]
""")


def detector(folder: Path, shapes: Path) -> Path:
    path = folder / 'detector.py'
    path.write_text(f"""
custom_imports = dict(imports=['repvgg_mm'])
default_scope = 'mmdet'
model = {retinanet_config()}
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root='{shapes}', ann_file='annotations/train.json',
        data_prefix=dict(img='images/train'), metainfo=dict(classes=('disk', 'ring', 'square')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                  dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='MultiStepLR', milestones=[3], by_epoch=True)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
""")
    return path


def assert_equal(first: Path, second: Path) -> None:
    expected, found = read_checkpoint(first), read_checkpoint(second)
    keys = ('state_dict', 'optimizer', 'param_schedulers', *({'ema_state_dict'} & set(expected)))
    assert len(expected['state_dict']) > 100
    for key in keys:
        (places, values), (other_places, other_values) = leaves(expected[key]), leaves(found[key])
        assert places == other_places
        for place, value, other in zip(places, values, other_values):
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(other, value, rtol=0, atol=0, msg=f'{key} {place}')
            else:
                assert value == other, (key, place)


def train_and_resume(config: Path, folder: Path, saved: str, last: str, *flags: object) -> None:
    """Train to `last`; go on from `saved` in a work dir that holds nothing later; both ends must be equal."""
    whole, resumed = folder / 'whole', folder / 'resumed'
    run_tool('tools/train.py', config, '--work-dir', whole, *flags)
    resumed.mkdir()
    shutil.copy(whole / saved, resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / saved))
    output = run_tool('tools/train.py', config, '--work-dir', resumed, '--resume', *flags).stdout
    assert f'Resuming from {resumed / saved}' in output
    assert_equal(whole / last, resumed / last)
    first, end = (read_checkpoint(whole / name)['state_dict'] for name in (saved, last))
    assert any(not torch.equal(first[name], end[name]) for name in first if 'conv' in name)


def steps_with_validation() -> list[str]:
    return [*iterations(8, save_every=4), 'train_cfg.val_interval=2']


def test_batches_loaded_by_the_process_itself(shapes, tmp_path):
    train_and_resume(small_segmentor(tmp_path), tmp_path, 'iter_4.pth', 'iter_8.pth',
                     '--cfg-options', *small_data(shapes), *steps_with_validation())


def test_batches_loaded_by_workers_and_averaged_weights(shapes, tmp_path):
    train_and_resume(
        small_segmentor(tmp_path, "dict(type='EMAHook')"), tmp_path, 'iter_4.pth', 'iter_8.pth',
        '--cfg-options', *small_data(shapes), *steps_with_validation(), 'train_dataloader.num_workers=2',
        'train_dataloader.persistent_workers=True', 'randomness.seed=3',
        'randomness.diff_rank_seed=True')


def test_epochs_of_a_detector(shapes, tmp_path):
    train_and_resume(detector(tmp_path, shapes), tmp_path, 'epoch_2.pth', 'epoch_4.pth')


def test_killed_at_any_moment_every_checkpoint_is_whole_and_training_goes_on(shapes, tmp_path):
    config, work_dir, rng = small_segmentor(tmp_path), tmp_path / 'work', random.Random(0)
    flags = ['--work-dir', work_dir, '--cfg-options', *small_data(shapes), *iterations(100_000, save_every=1),
             'default_hooks.checkpoint.max_keep_ckpts=2']
    newest = 0
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, 'tools/train.py', *map(str, [config, *(['--resume'] * (kill > 0)), *flags])], cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while steps(work_dir) <= newest and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.3, 1))
        assert process.poll() is None, process.stderr.read()[-3000:]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert steps(work_dir) > newest
        newest = steps(work_dir)
        for path in work_dir.glob('iter_*.pth'):
            assert read_checkpoint(path)['meta']['iter'] == int(path.stem.split('_')[1])


def steps(work_dir: Path) -> int:
    return max((int(path.stem.split('_')[1]) for path in work_dir.glob('iter_*.pth')), default=0)


@pytest.mark.parametrize('named', ['', 'iter_9.pth'])
def test_the_newest_file_is_taken_if_last_checkpoint_names_none(named, shapes, tmp_path):
    config, flags = small_segmentor(tmp_path), ['--cfg-options', *small_data(shapes), *iterations(2, save_every=1)]
    run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', *flags)
    (tmp_path / 'work' / 'last_checkpoint').write_text(named and str(tmp_path / 'work' / named))
    output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', '--resume', *flags).stdout
    assert f'Resuming from {tmp_path / "work" / "iter_2.pth"}' in output


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / 'iter_1.pth').write_bytes(b'PK\x03\x04 damaged')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    result = run_tool('tools/train.py', small_segmentor(tmp_path), '--work-dir', tmp_path, '--resume', check=False)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'iter_1.pth cannot be read as a checkpoint' in result.stderr
