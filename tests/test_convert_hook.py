"""RepVGGConvertHook: a run leaves proven deploy forms behind and is otherwise the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_same_state, leaves
from mmengine.config import Config
from tool_runs import ROOT, derived_config, iterations, run_tool, small_data

from repvgg_mm import load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.runner import build_model, replace_sync_bn
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


def test_the_run_is_the_same_without_the_hook(run, shapes, tmp_path):
    run_tool('tools/train.py', config(tmp_path, "dict(type='EMAHook')"), '--work-dir', tmp_path, *flags(shapes, 4))
    hooked, plain = (read_checkpoint(folder / 'iter_4.pth') for folder in (run / 'work', tmp_path))
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        (places, values), (other_places, other_values) = leaves(hooked[key]), leaves(plain[key])
        assert places == other_places
        for value, other in zip(values, other_values):
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


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
