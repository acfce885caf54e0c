"""A Runner from a config: what is checked before, what is added to training, files that are never half written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import TINY
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from tool_runs import derived_config, small_data

from repvgg_mm import UserError, read_checkpoint
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.openmmlab.config import read_config
from repvgg_mm.training.resume import IgnoreSavedConfigHook, SeedEachStepHook
from repvgg_mm.training.runner import build_runner
from repvgg_mm.training.work_dir import LOCK, AtomicLocalBackend, OwnWorkDirHook

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=1, size=32)


@pytest.fixture
def cfg(shapes, tmp_path):
    """The shapes config with a tiny backbone, one step long."""
    path = derived_config(tmp_path / 'small.py', f"""
model = dict(
    data_preprocessor=dict(size=(32, 32)), backbone=dict(arch=dict(_delete_=True, **{TINY})),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1, save_best=None))
""")
    cfg = read_config(path, dict(option.split('=') for option in small_data(shapes)))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.update(launcher='none', work_dir=str(tmp_path / 'work'), experiment_name=tmp_path.name)
    yield cfg
    DefaultScope._instance_dict.clear()


HOOKS = (OwnWorkDirHook, SeedEachStepHook, IgnoreSavedConfigHook)


def hooks_of_training(runner: Runner) -> list[type]:
    return [type(hook) for hook in runner.hooks if isinstance(hook, HOOKS)]


def test_training_gets_the_hooks_that_resuming_needs_and_writes_whole_checkpoints(cfg, monkeypatch):
    written = []
    put = AtomicLocalBackend.put

    def recorded(backend: AtomicLocalBackend, content: bytes, path: str) -> None:
        written.append(Path(path).name)
        put(backend, content, path)

    monkeypatch.setattr(AtomicLocalBackend, 'put', recorded)
    runner = build_runner(cfg, 'train', 'val')
    assert set(hooks_of_training(runner)) == set(HOOKS)
    runner.train()
    assert 'iter_1.pth' in written
    assert read_checkpoint(Path(cfg.work_dir) / 'iter_1.pth')['meta']['iter'] == 1
    assert [name for name in os.listdir(cfg.work_dir) if name.startswith('.')] in ([], [LOCK])


def test_testing_gets_no_hooks_of_training(cfg):
    assert hooks_of_training(build_runner(cfg, 'test')) == []


def test_data_that_are_missing_are_found_before_anything_is_built(cfg):
    cfg.val_dataloader.dataset.data_root = '/absent'
    cfg.model.type = 'NotBuilt'
    with pytest.raises(UserError, match=r'in the folder /absent, where .*docs/train\.md, section "Datasets"'):
        build_runner(cfg, 'train', 'val')


def test_an_option_that_nothing_has(cfg):
    cfg.model.decode_head.nonsense = 1
    with pytest.raises(UserError, match=r'describes parts and options that its toolbox has.*nonsense'):
        build_runner(cfg, 'train')
