"""Two real processes: equal weights, nothing unused, killed and resumed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch
from tool_runs import ROOT, derived_config, free_port, iterations, small_data

from repvgg_mm.demo.shapes import make_shapes

pytestmark = pytest.mark.stack


def launch(work_dir, shapes, steps: list[str], *flags: str, program: str = 'torchrun') -> subprocess.Popen:
    """tools/train.py on two processes that torchrun (tools/dist_train.sh) or mpirun starts."""
    config = derived_config(work_dir / 'hooked.py', "custom_imports = dict(imports=['repvgg_mm', 'rank_weights'])\n"
                            "custom_hooks = [dict(type='DumpWeightsHook')]\n"
                            "model = dict(backbone=dict(norm_cfg=dict(type='SyncBN')))")
    env = {**os.environ, 'PYTHON': sys.executable, 'PORT': str(free_port()), 'OMP_NUM_THREADS': '1',
           'PYTHONPATH': str(ROOT / 'tests' / 'programs')}
    start = ['bash', 'tools/dist_train.sh', config, '2']
    if program == 'mpirun':
        env.update(MASTER_PORT=env['PORT'], OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1')
        start = ['mpirun', '-np', '2', '--oversubscribe', sys.executable, 'tools/train.py', config, '--launcher', 'mpi']
    return subprocess.Popen(
        [*start, '--work-dir', work_dir, *flags, '--cfg-options', *small_data(shapes), *steps],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=12, num_val=4, size=64)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and its ranks, which are no members of its process group."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.communicate()


def assert_equal_ranks(work_dir) -> None:
    first, second = (torch.load(work_dir / f'rank{rank}.pth', weights_only=True) for rank in (0, 1))
    parameters = [name for name in first if 'running_' not in name and 'num_batches' not in name]
    assert len(parameters) > 100
    for name in parameters:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=lambda m, name=name: f'{name}: {m}')
    moved = [name for name in parameters if name.startswith('backbone.') and not torch.equal(
        first[name], torch.load(work_dir / 'start.pth', weights_only=True)[name])]
    assert moved


@pytest.mark.parametrize('program', [
    'torchrun',
    pytest.param('mpirun', marks=pytest.mark.skipif(not shutil.which('mpirun'), reason='Open MPI is not installed'))])
def test_two_ranks_end_with_equal_weights(program, shapes, tmp_path):
    # DDP stops in the second step if a parameter is unused
    finish(launch(tmp_path, shapes, iterations(3), program=program))
    assert_equal_ranks(tmp_path)


def test_killed_and_resumed(shapes, tmp_path):
    process = launch(tmp_path, shapes, iterations(200, save_every=2))
    deadline = time.monotonic() + 300
    while not (tmp_path / 'iter_4.pth').exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    kill_all(process)
    saved = max(int(path.stem.split('_')[1]) for path in tmp_path.glob('iter_*.pth'))
    assert 4 <= saved < 200
    output = finish(launch(tmp_path, shapes, iterations(saved + 4), '--resume', '--verbose'))
    assert f'Iter(train) [{saved + 1}/{saved + 4}]' in output or f'Iter(train) [  {saved + 1}/{saved + 4}]' in output
    assert (tmp_path / f'iter_{saved + 4}.pth').exists()
    assert_equal_ranks(tmp_path)
