"""RepVGGConvertHook: a run leaves proven deploy forms behind and is otherwise the same run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_same_state
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tool_runs import ROOT, iterations, run_tool, small_data, syncbn_config

from repvgg_mm import UserError, load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.commands.arguments import parse
from repvgg_mm.commands.setup import load_config
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.openmmlab.model import build_model, replace_sync_bn
from repvgg_mm.training.runner import build_runner

pytestmark = pytest.mark.stack
HOOKS = "dict(type='EMAHook'), dict(type='RepVGGConvertHook', shape=(64, 64))"


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=6, num_val=2, size=48)


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
    run_tool('tools/train.py', syncbn_config(folder, HOOKS), '--work-dir', folder / 'work', *flags(shapes, 4))
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


class JustBefore(Hook):
    """Runs before RepVGGConvertHook: remembers the live model, and damages the last checkpoint."""

    priority = 'VERY_LOW'

    def after_train(self, runner: Runner) -> None:
        self.state = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
        self.modes = [module.training for module in runner.model.modules()]
        path = Path(runner.work_dir) / 'iter_2.pth'
        checkpoint = read_checkpoint(path)
        checkpoint['state_dict']['backbone.stem.branch_3x3.norm.running_var'].fill_(torch.nan)
        torch.save(checkpoint, path)


def a_runner(folder: Path, shapes: Path, text: str = '', strict: bool = False) -> Runner:
    path = syncbn_config(folder, f"dict(type='RepVGGConvertHook', shape=(64, 64), strict={strict})")
    path.write_text(path.read_text() + text)
    args = parse(['train', str(path), *flags(shapes, 2), 'model.backbone.norm_cfg.type=BN'])
    cfg = load_config(args)
    cfg.update(launcher='none', work_dir=str(folder / 'work'))
    return build_runner(cfg, 'train', 'val')


@pytest.mark.parametrize('strict', [False, True])
def test_the_live_model_is_untouched_and_a_refused_checkpoint_does_not_keep_the_best(
        strict, shapes, tmp_path, monkeypatch):
    runner, before, said = a_runner(tmp_path, shapes, strict=strict), JustBefore(), []
    monkeypatch.setattr(runner.logger, 'error', said.append)
    runner.register_hook(before)
    expected = r'^iter_2\.pth was not converted\. .*Running statistics must be finite'
    if strict:
        with pytest.raises(UserError, match=expected):
            runner.train()
    else:
        runner.train()
        assert len(said) == 1 and re.match(expected, said[0])
    best, = (tmp_path / 'work').glob('best_*_deploy.pth')
    assert {path.name for path in (tmp_path / 'work').glob('*_deploy.*')} == {best.name, f'{best.stem}.py'}
    assert_same_state(runner.model, before.state)
    assert [module.training for module in runner.model.modules()] == before.modes


def test_a_training_ends_well_whatever_the_model_does_when_it_is_compared(shapes, tmp_path, monkeypatch):
    def fails(*arguments: object) -> None:
        raise RuntimeError('mode tensor needs data samples')

    runner, said = a_runner(tmp_path, shapes), []
    monkeypatch.setattr(runner.logger, 'error', said.append)
    monkeypatch.setattr('repvgg_mm.deploy.hook.convert_checkpoint', fails)
    runner.train()
    assert {text.partition(' was ')[2] for text in said} == {
        'not converted. RuntimeError: mode tensor needs data samples'}


def test_a_deploy_form_that_is_finetuned_stays_as_it_is(shapes, tmp_path):
    a_runner(tmp_path, shapes, 'model["backbone"]["deploy"] = True\n').train()
    assert (tmp_path / 'work' / 'iter_2.pth').is_file() and not list((tmp_path / 'work').glob('*_deploy.*'))


def test_after_resuming(run, shapes, tmp_path):
    run_tool('tools/train.py', syncbn_config(tmp_path, HOOKS), '--work-dir', tmp_path / 'work', *flags(shapes, 2))
    for path in (tmp_path / 'work').glob('*_deploy.*'):
        path.unlink()
    run_tool('tools/train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work', '--resume', *flags(shapes, 4))
    assert_converted(tmp_path / 'work' / 'iter_4.pth', tmp_path / 'config.py')


def test_two_processes_and_the_first_writes(shapes, tmp_path):
    result = subprocess.run(
        ['bash', 'tools/dist_train.sh', syncbn_config(tmp_path, HOOKS), '2', '--work-dir', tmp_path / 'work',
         *flags(shapes, 2)], cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': '29517', 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr[-3000:]
    assert_converted(tmp_path / 'work' / 'iter_2.pth', tmp_path / 'config.py')
    assert (result.stdout + result.stderr).count('/iter_2_deploy.pth and') == 1
