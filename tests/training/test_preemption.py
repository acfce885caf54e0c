"""A training that is signalled ends with a checkpoint, and the resumed one ends like one that nobody stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import leaves
from hostile_checkpoints import shapes_model
from tool_runs import ROOT, derived_config, iterations, run_tool, small_data

from repvgg_mm import read_checkpoint
from repvgg_mm.demo.shapes import make_shapes

pytestmark = pytest.mark.stack
STEPS = 60


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=6, num_val=2, size=48)


@pytest.fixture(scope='module')
def config(tmp_path_factory, shapes) -> Path:
    folder = tmp_path_factory.mktemp('config')
    return derived_config(folder / 'small.py', f"""
model = dict(_delete_=True, **{shapes_model()})
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end={STEPS}, by_epoch=False)]
""")


def command(config: Path, shapes: Path, work_dir: Path, *flags: str) -> list[str]:
    words = [config, '--work-dir', work_dir, *flags, '--cfg-options', *small_data(shapes), *iterations(STEPS),
             'randomness.seed=0']
    return ['tools/train.py', *map(str, words)]


def stopped(words: list[str], number: int, wait: float, to_the_group: bool = False) -> tuple[int, str]:
    """Exit code and output of a training that gets a signal `wait` seconds after its first line of progress."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith('Training '):
            break
    time.sleep(wait)
    (os.killpg if to_the_group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=300)
    return process.returncode, ''.join(lines) + output


def assert_same_end(first: Path, second: Path) -> None:
    contents = []
    for path in (first, second):
        checkpoint = read_checkpoint(path)
        contents.append(leaves(dict(weights=checkpoint['state_dict'], optimizer=checkpoint['optimizer'])))
    (places, values), (other_places, other_values) = contents
    assert places == other_places
    for place, value, other in zip(places, values, other_values):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, place


@pytest.fixture(scope='module')
def whole(config, shapes, tmp_path_factory) -> Path:
    """The last checkpoint of a run that nobody stops."""
    work_dir = tmp_path_factory.mktemp('whole')
    run_tool(*command(config, shapes, work_dir))
    return work_dir / f'iter_{STEPS}.pth'


@pytest.mark.parametrize('number, code', [
    (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)], ids=['TERM', 'USR1', 'INT'])
def test_it_finishes_its_step_and_goes_on_as_if_nothing_had_been(number, code, config, shapes, whole, tmp_path):
    wait = random.Random(int(number)).uniform(0.2, 1)
    found, output = stopped(command(config, shapes, tmp_path), number, wait)
    written = (tmp_path / 'last_checkpoint').read_text()
    step = int(Path(written).stem.removeprefix('iter_'))
    assert found == code and 0 < step < STEPS, output
    assert f'Stopped by a signal after step {step}: {written} is written; go on with --resume.' in output
    assert 'Traceback' not in output

    run_tool(*command(config, shapes, tmp_path, '--resume'))
    assert_same_end(whole, tmp_path / f'iter_{STEPS}.pth')


def test_ctrl_c_reaches_the_workers_too(config, shapes, tmp_path):
    words = [*command(config, shapes, tmp_path), 'train_dataloader.num_workers=2',
             'train_dataloader.persistent_workers=True']
    code, output = stopped(words, signal.SIGINT, 0.5, to_the_group=True)
    assert code == 130 and 'Stopped by a signal after step' in output and 'Traceback' not in output, output


def test_a_second_signal_ends_at_once(config, shapes, tmp_path):
    """Here the first is taken, and the step in which it comes never ends."""
    program = tmp_path / 'program.py'
    program.write_text("""
import os, signal, time
from repvgg_mm import SaveOnSignalHook
hook = SaveOnSignalHook()
before = signal.getsignal(signal.SIGTERM)
hook.watch()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
print('still here', hook.code, flush=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
finally:
    print('given back', signal.getsignal(signal.SIGTERM) is before, flush=True)
""")
    result = run_tool(program, check=False)
    assert result.returncode == 130 and result.stdout == 'still here 143\ngiven back True\n', result


def test_epochs_are_finished(shapes, tmp_path):
    config = derived_config(tmp_path / 'epochs.py', f"""
model = dict(_delete_=True, **{shapes_model()})
train_dataloader = dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1000, val_interval=1000)
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=True, interval=1000))
param_scheduler = []
""")
    words = ['tools/train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', *small_data(shapes)]
    code, output = stopped([str(word) for word in words], signal.SIGTERM, 0.5)
    written = (tmp_path / 'work' / 'last_checkpoint').read_text()
    epoch = int(Path(written).stem.removeprefix('epoch_'))
    assert code == 143 and f'Stopped by a signal after epoch {epoch}: {written} is written' in output, output
    assert read_checkpoint(written)['meta']['epoch'] == epoch


@pytest.mark.parametrize('rank, hook', [(1, 'CheckpointHook'), (0, 'SlowCheckpointHook')])
def test_two_processes_end_together(rank, hook, config, shapes, tmp_path):
    """One of them is signalled. The other one is still there where rank 0 takes three seconds to write: torchrun would
    signal rank 0 for the second time, and mpirun kill it."""
    slow = derived_config(tmp_path / 'slow.py', f"""
custom_imports = dict(imports=['repvgg_mm', 'rank_weights'])
default_hooks = dict(checkpoint=dict(type='{hook}'))
""", base=config)
    words = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', *command(
        slow, shapes, tmp_path, '--launcher', 'pytorch')]
    modules = [str(ROOT / 'tests' / 'programs'), os.environ.get('PYTHONPATH', '')]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(modules)}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment)
    for line in process.stdout:
        if line.startswith('Training '):
            break
    time.sleep(0.5)
    for member in psutil.Process(process.pid).children():
        if member.environ()['RANK'] == str(rank):
            member.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert output.count('Stopped by a signal after step') == 1, output
    written = read_checkpoint((tmp_path / 'last_checkpoint').read_text())
    assert 0 < written['meta']['iter'] < STEPS
    assert 'exitcode  : 143' in output, output
