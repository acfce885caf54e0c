"""RepVGGConvertHook: a run leaves proven deploy forms behind and is otherwise the same run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, assert_same_state
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from tool_runs import ROOT, derived_config, iterations, run_tool, small_data

from repvgg_mm import RepVGGConvertHook, UserError, load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.model_config import build_model, replace_sync_bn
from repvgg_mm.shapes import make_shapes

pytestmark = pytest.mark.stack
HOOKS = "dict(type='EMAHook'), dict(type='RepVGGConvertHook', shape=(64, 64))"


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=6, num_val=2, size=48)


def config(folder: Path, hooks: str) -> Path:
    return derived_config(folder / 'config.py', f"""
custom_hooks = [{hooks}]
model = dict(
    data_preprocessor=dict(size=(48, 48)),
    backbone=dict(arch=dict(_delete_=True, **{TINY}), norm_cfg=dict(type='SyncBN')),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
""")


def flags(shapes: Path, steps: int) -> list[str]:
    return ['--cfg-options', *small_data(shapes), *iterations(steps, save_every=2), 'randomness.seed=1']


def assert_converted(training: Path, config_path: Path) -> None:
    deploy = training.with_name(f'{training.stem}_deploy.pth')
    cfg = Config.fromfile(config_path)
    replace_sync_bn(cfg)
    trained = build_model(cfg)
    load_strictly(trained, read_checkpoint(training), 'training form')
    built = build_model(Config.fromfile(deploy.with_suffix('.py')))
    load_strictly(built, read_checkpoint(deploy), 'deploy form')
    assert_same_state(built, dict(whole_model_convert(trained).state_dict()))


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('hooked')
    run_tool('tools/train.py', config(folder, HOOKS), '--work-dir', folder / 'work', *flags(shapes, 4))
    return folder


def test_last_and_best_are_converted(run):
    work_dir = run / 'work'
    training = [path for path in work_dir.glob('*.pth') if not path.stem.endswith('_deploy')]
    names = {'iter_4', *(path.stem for path in training if path.stem.startswith('best_'))}
    assert len(names) == 2
    assert {path.name for path in work_dir.glob('*_deploy.*')} == {
        f'{name}_deploy.{suffix}' for name in names for suffix in ('pth', 'py')}
    for name in names:
        assert_converted(work_dir / f'{name}.pth', run / 'config.py')


def a_runner(folder: Path, arch_options: dict, checkpoints: dict[str, dict]) -> SimpleNamespace:
    """What the hook uses of a Runner that has written `checkpoints`, the first one last and the second one best."""
    path = config(folder, '')
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(norm_cfg=dict(type='BN'), **arch_options)
    for name, state in checkpoints.items():
        torch.save(state, folder / f'{name}.pth')
    written = CheckpointHook(interval=1)
    written.last_ckpt, written.best_ckpt_path = (str(folder / f'{name}.pth') for name in checkpoints)
    return SimpleNamespace(cfg=cfg, hooks=[written], logger=logging.getLogger(), model=build_model(cfg))


def test_the_live_model_is_untouched(tmp_path):
    state = dict(a_runner(tmp_path, {}, dict(iter_4={}, best={})).model.state_dict())
    runner = a_runner(tmp_path, {}, dict(iter_4=state, best=state))
    runner.model.train()
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    modes = [module.training for module in runner.model.modules()]
    RepVGGConvertHook(shape=(64, 64)).after_train(runner)
    assert (tmp_path / 'iter_4_deploy.pth').is_file() and (tmp_path / 'best_deploy.pth').is_file()
    assert_same_state(runner.model, before)
    assert [module.training for module in runner.model.modules()] == modes


def test_one_that_is_refused_does_not_keep_the_others(tmp_path):
    state = dict(a_runner(tmp_path, {}, dict(iter_4={}, best={})).model.state_dict())
    name = 'backbone.stem.branch_3x3.norm.running_var'
    broken = dict(state, **{name: torch.full_like(state[name], torch.nan)})
    with pytest.raises(UserError, match=r'^iter_4\.pth was not converted\. .*Running statistics must be finite'):
        RepVGGConvertHook(shape=(64, 64)).after_train(a_runner(tmp_path, {}, dict(iter_4=broken, best=state)))
    assert {path.name for path in tmp_path.glob('*_deploy.*')} == {'best_deploy.pth', 'best_deploy.py'}


def test_a_deploy_form_that_was_finetuned_stays_as_it_is(tmp_path):
    runner = a_runner(tmp_path, dict(deploy=True), dict(iter_4={}, best={}))
    state = dict(runner.model.state_dict())
    RepVGGConvertHook(shape=(64, 64)).after_train(a_runner(tmp_path, dict(deploy=True), dict(iter_4=state, best=state)))
    assert list(tmp_path.glob('*_deploy.*')) == []


def test_after_resuming(run, shapes, tmp_path):
    run_tool('tools/train.py', config(tmp_path, HOOKS), '--work-dir', tmp_path / 'work', *flags(shapes, 2))
    for path in (tmp_path / 'work').glob('*_deploy.*'):
        path.unlink()
    run_tool('tools/train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work', '--resume', *flags(shapes, 4))
    assert_converted(tmp_path / 'work' / 'iter_4.pth', tmp_path / 'config.py')


def test_two_processes_and_the_first_writes(shapes, tmp_path):
    result = subprocess.run(
        ['bash', 'tools/dist_train.sh', config(tmp_path, HOOKS), '2', '--work-dir', tmp_path / 'work',
         *flags(shapes, 2)], cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': '29517', 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr[-3000:]
    assert_converted(tmp_path / 'work' / 'iter_2.pth', tmp_path / 'config.py')
    assert (result.stdout + result.stderr).count('/iter_2_deploy.pth and') == 1
