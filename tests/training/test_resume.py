"""An interrupted and resumed run ends like one that was not interrupted, bit by bit; a kill leaves whole files."""

from __future__ import annotations

import os
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
from mmengine.config import Config
from tool_runs import ROOT, assert_refused, derived_config, iterations, run_tool, small_data

from repvgg_mm import read_checkpoint
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.errors import UserError
from repvgg_mm.files.checkpoint import write_checkpoint
from repvgg_mm.training.resume import resume_latest

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


def detector(folder: Path, shapes: Path, workers: int) -> Path:
    path = folder / 'detector.py'
    path.write_text(f"""
custom_imports = dict(imports=['repvgg_mm'])
default_scope = 'mmdet'
model = {retinanet_config()}
train_dataloader = dict(
    batch_size=2, num_workers={workers}, persistent_workers={workers > 0},
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root='{shapes}', ann_file='annotations/train.json',
        data_prefix=dict(img='images/train'), metainfo=dict(classes=('disk', 'ring', 'square')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                  dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='MultiStepLR', milestones=[3], by_epoch=True)]
randomness = dict(seed=None)
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


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs_of_a_detector(workers, shapes, tmp_path):
    train_and_resume(detector(tmp_path, shapes, workers), tmp_path, 'epoch_2.pth', 'epoch_4.pth')


def test_killed_at_any_moment_every_checkpoint_is_whole_and_training_goes_on(shapes, tmp_path):
    config, work_dir, rng = small_segmentor(tmp_path), tmp_path / 'work', random.Random(0)
    flags = ['--work-dir', work_dir, '--cfg-options', *small_data(shapes), *iterations(100_000, save_every=1),
             'default_hooks.checkpoint.max_keep_ckpts=1']
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


def checkpoint(path: Path, without: str = '', **meta: object) -> Path:
    """What a Runner's checkpoint must hold to be resumed, at `path`."""
    parts = dict(meta=dict(dict(epoch=0, iter=2, seed=5), **meta), state_dict={}, message_hub={}, optimizer={})
    parts.pop(without, None)
    write_checkpoint(path, parts)
    return path


@pytest.mark.parametrize('named', [None, '', 'iter_9.pth', 'iter_', '\0\0'])
def test_the_newest_file_is_taken_if_last_checkpoint_names_none(named, tmp_path):
    for moment, name in enumerate(['iter_10.pth', 'iter_2.pth', 'best_mIoU_iter_4.pth', 'iter_2_deploy.pth']):
        os.utime(checkpoint(tmp_path / name), (moment, moment))
    if named is not None:
        (tmp_path / 'last_checkpoint').write_text(named and str(tmp_path / named))
    assert resume_latest(Config(dict(work_dir=str(tmp_path)))) == str(tmp_path / 'iter_2.pth')


def test_an_outdated_checkpoint_is_not_the_latest(tmp_path):
    """Killed between writing the next one and the name of the latest, which the next training removes."""
    for moment, name in enumerate(['iter_3.pth', 'iter_4.pth']):
        os.utime(checkpoint(tmp_path / name), (moment, moment))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    cfg = Config(dict(work_dir=str(tmp_path)))
    assert resume_latest(cfg) == str(tmp_path / 'iter_3.pth')
    (tmp_path / '.iter_3.pth.is_outdated').touch()
    assert resume_latest(cfg) == str(tmp_path / 'iter_4.pth')
    (tmp_path / 'iter_4.pth').unlink()
    assert resume_latest(cfg) == str(tmp_path / 'iter_3.pth')


@pytest.mark.parametrize('set_to, expected', [
    (None, dict(seed=5)), (dict(seed=None, deterministic=True), dict(seed=5, deterministic=True)),
    (dict(seed=7), dict(seed=7)), (dict(seed=0), dict(seed=0))])
def test_the_seed_of_the_run_is_taken_unless_the_config_sets_one(set_to, expected, tmp_path):
    checkpoint(tmp_path / 'iter_2.pth')
    cfg = Config(dict(work_dir=str(tmp_path), **({} if set_to is None else dict(randomness=set_to))))
    resume_latest(cfg)
    assert cfg.randomness == expected and cfg.resume and cfg.load_from == str(tmp_path / 'iter_2.pth')


@pytest.mark.parametrize('without', ['meta', 'state_dict', 'message_hub', 'optimizer'])
def test_weights_alone_are_no_run_to_go_on_with(without, tmp_path):
    checkpoint(tmp_path / 'iter_2.pth', without)
    with pytest.raises(UserError, match=f'iter_2.pth has no {without}.*load_from'):
        resume_latest(Config(dict(work_dir=str(tmp_path))))


@pytest.mark.parametrize('meta', [
    dict(iter='2'), dict(epoch=None), dict(seed='x'), dict(iter=-5), dict(iter=10**18), dict(epoch=True),
    dict(seed=-1), dict(seed=1 << 32)])
def test_counters_and_seed_are_whole_numbers(meta, tmp_path):
    checkpoint(tmp_path / 'iter_2.pth', **meta)
    with pytest.raises(UserError, match=f"iter_2.pth has the {next(iter(meta))} "):
        resume_latest(Config(dict(work_dir=str(tmp_path))))


@pytest.mark.parametrize('key, length, refused', [
    ('max_iters', 2, False), ('max_iters', 1, True), ('max_epochs', 0, False), ('max_epochs', 3, False)])
def test_a_run_is_not_longer_than_the_config_asks(key, length, refused, tmp_path):
    checkpoint(tmp_path / 'iter_2.pth')
    cfg = Config(dict(work_dir=str(tmp_path), train_cfg={key: length}))
    if not refused:
        resume_latest(cfg)
        return
    with pytest.raises(UserError, match=r'goes on up to train_cfg.max_iters, which is 1, .*written at iter 2'):
        resume_latest(cfg)


def test_a_message_hub_of_another_kind(tmp_path):
    write_checkpoint(tmp_path / 'iter_2.pth', dict(
        meta=dict(epoch=0, iter=2, seed=5), state_dict={}, message_hub=dict(runtime_info=[1]), optimizer={}))
    with pytest.raises(UserError, match=r'runtime_info is a list'):
        resume_latest(Config(dict(work_dir=str(tmp_path))))


@pytest.mark.parametrize('part, value', [
    ('optimizer', dict(state={}, param_groups=[])), ('param_schedulers', [1, 2, 3]), ('optimizer', dict(a=1))])
def test_what_belongs_to_another_run_is_one_sentence(part, value, shapes, tmp_path):
    config, work_dir = small_segmentor(tmp_path), tmp_path / 'work'
    flags = ['--work-dir', work_dir, '--cfg-options', *small_data(shapes)]
    run_tool('tools/train.py', config, *flags, *iterations(1))
    content = read_checkpoint(work_dir / 'iter_1.pth')
    content[part] = value
    write_checkpoint(work_dir / 'iter_1.pth', content)
    result = run_tool('tools/train.py', config, '--resume', *flags, *iterations(2), check=False)
    assert_refused(result, 'goes on with the model, optimizer and schedule', 'load_from=')


def test_the_config_in_a_checkpoint_is_not_run(shapes, tmp_path):
    """mmengine's Runner runs it as Python when it resumes."""
    config, work_dir, ran = small_segmentor(tmp_path), tmp_path / 'work', tmp_path / 'ran'
    flags = ['--work-dir', work_dir, '--cfg-options', *small_data(shapes)]
    run_tool('tools/train.py', config, *flags, *iterations(1))
    content = read_checkpoint(work_dir / 'iter_1.pth')
    content['meta']['config'] = f'open({str(ran)!r}, "w").close()'
    write_checkpoint(work_dir / 'iter_1.pth', content)
    run_tool('tools/train.py', config, '--resume', *flags, *iterations(2))
    assert (work_dir / 'iter_2.pth').exists() and not ran.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / 'iter_1.pth').write_bytes(b'PK\x03\x04 damaged')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    result = run_tool('tools/train.py', small_segmentor(tmp_path), '--work-dir', tmp_path, '--resume', check=False)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'iter_1.pth cannot be read as a checkpoint' in result.stderr
