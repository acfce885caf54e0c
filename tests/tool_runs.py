"""Run the project's tools as a user does: as processes, in the root of the repository."""

from __future__ import annotations

import functools
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIMEOUT = 600  # seconds
CONFIG = 'configs/pspnet_repvgg_a0_shapes.py'


def run_tool(
    *command: object, check: bool = True, python: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess:
    """`python COMMAND` with its output; an AssertionError shows that output if `check` and it failed."""
    scripts = Path(python).parent  # as in an environment that is activated
    variables = {
        'OMP_NUM_THREADS': '1', **os.environ, 'PATH': f'{scripts}{os.pathsep}{os.environ["PATH"]}', **environment}
    words = [str(word) for word in command]
    own_imports = python != sys.executable or 'PYTHONPATH' in environment or not words[0].endswith('.py')
    server = None if own_imports else warm_python()
    if server:
        result = run_warm(server, words, variables)
    else:
        result = subprocess.run(
            [python, *words], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, env=variables)
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def run_warm(server: subprocess.Popen, words: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess:
    """What `subprocess.run` gives, of a process that starts with torch, MMEngine and mmcv imported."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        request = dict(argv=words, environment=variables, folder=str(ROOT), streams=[out.name, err.name],
                       file_size=resource.getrlimit(resource.RLIMIT_FSIZE))  # inherited, as any process does
        server.stdin.write(json.dumps(request) + '\n')
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], TIMEOUT)
        if not ready:
            server.kill()
            warm_python.cache_clear()
            raise subprocess.TimeoutExpired(words, TIMEOUT, out.read(), err.read())
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read().decode(), err.read().decode())


@functools.cache
def warm_python() -> subprocess.Popen | None:
    """Ends with the process of the tests, which closes its input. None where a process cannot be copied."""
    server = subprocess.Popen(
        [sys.executable, ROOT / 'tests/programs/warm_python.py'], text=True, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return server if server.stdout.readline() == 'warm\n' else None


def run_peer(*command: object, **options) -> subprocess.CompletedProcess:
    """`run_tool` in the environment made by `make peers`, which has other libraries beside the packages of this one."""
    python = Path(f'{sys.prefix}-peers') / 'bin' / 'python'
    assert python.exists(), f'{python} is missing. Run: make peers'
    return run_tool(*command, python=python, **options)


class Run(NamedTuple):
    """How a job of `tests/programs/measured_runs.py` ended."""

    code: int
    message: str
    memory: int | None
    seconds: float


def measured_runs(commands: list[list[object]], folder: Path) -> list[Run]:
    """Each command line in a process of its own, with what it took."""
    path = folder / 'runs.json'
    path.write_text(json.dumps([[str(word) for word in command] for command in commands]))
    output = run_tool('tests/programs/measured_runs.py', path).stdout
    return [Run(**result) for result in json.loads(output.rpartition('RESULTS')[2])]


def free_port() -> int:
    """Of this machine: the tests of both stacks may run at once."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def small_data(root: Path) -> list[str]:
    """--cfg-options that let the shapes config run on a few images, loaded by the process itself."""
    options = []
    for split in ('train', 'val', 'test'):
        options += [f'{split}_dataloader.dataset.data_root={root}', f'{split}_dataloader.num_workers=0',
                    f'{split}_dataloader.persistent_workers=False']
    return [*options, 'train_dataloader.batch_size=2']


def iterations(count: int, save_every: int | None = None) -> list[str]:
    return [f'train_cfg.max_iters={count}', f'train_cfg.val_interval={count}',
            f'default_hooks.checkpoint.interval={save_every or count}', 'default_hooks.checkpoint.max_keep_ckpts=-1',
            'default_hooks.logger.interval=1']


def metric(work_dir: Path, name: str = 'mIoU') -> float:
    return json.loads(sorted(Path(work_dir).glob('*/*.json'))[-1].read_text())[name]


def derived_config(path: Path, text: str, base: str = CONFIG) -> Path:
    """A config file at `path` that adds `text` to one of the project's configs."""
    path.write_text(f"_base_ = ['{ROOT / base}']\n{text}\n")
    return path


def assert_refused(result, *expected: str) -> None:
    """Exit code 1, one message without a stack trace, with every expected part."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'Traceback' not in result.stderr
    for part in expected:
        assert part in result.stderr


def syncbn_config(folder: Path, hooks: str) -> Path:
    """The shapes config with a tiny backbone, SyncBN and `hooks`."""
    return derived_config(folder / 'config.py', f"""
custom_hooks = [{hooks}]
model = dict(
    data_preprocessor=dict(size=(48, 48)),
    backbone=dict(norm_cfg=dict(type='SyncBN'), arch=dict(
        _delete_=True, depths=(1, 2, 4, 1), width_factors=(0.125, 0.125, 0.125, 0.125))),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
""")
