"""Kill tools at any moment, start them again, and look at what is there: nothing lost, nothing mixed, nothing left.

    python tests/programs/kills.py [--training 80] [--conversion 70] [--export 50]

Takes some minutes. Two of three kills are SIGKILL, the third is SIGTERM; half of them come when a temporary file is
there, the others at any moment of the run. A fault is a stack trace of this program; the last line counts.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mmdet.models  # noqa: F401
import mmengine.runner  # noqa: F401
import mmseg.models  # noqa: F401
import torch
from exit_codes import exit_code
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import randomise_norms
from hostile_checkpoints import shapes_model
from tool_runs import ROOT, derived_config, iterations, small_data

from repvgg_mm import UserError, read_checkpoint
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.engine.description import read_description
from repvgg_mm.openmmlab.model import build_model, replace_sync_bn

TEMPORARY = re.compile(r'\..+\.\w{8}')
MOST_SECONDS = 60
ENDS = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)  # an error of its own is none
SAID = Path(tempfile.gettempdir()) / f'said_by_the_killed.{os.getpid()}'


def start(command: list[object]) -> int:
    """The process of a tool, with everything imported."""
    child = os.fork()
    if child:
        return child

    os.setsid()
    said = os.open(SAID, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    os._exit(exit_code([str(word) for word in command]))


def finish(command: list[object]) -> float:
    """Seconds of a run that nobody kills; it ends well."""
    begin = time.monotonic()
    _, status = os.waitpid(start(command), 0)
    assert status == 0, (command, SAID.read_text()[-3000:])
    return time.monotonic() - begin


def temporary_files(folder: Path) -> list[Path]:
    """Also while another process makes and removes them."""
    while True:
        try:
            return [path for path in folder.rglob('.*') if TEMPORARY.fullmatch(path.name)]
        except FileNotFoundError:
            continue


def kill(command: list[object], folder: Path, seconds: float, rng: random.Random) -> str:
    """Run `command`, which takes `seconds` and writes in `folder`, and kill it; what it was doing."""
    sign = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    before = set(temporary_files(folder))
    process, begin = start(command), time.monotonic()
    if rng.random() < 0.5:
        while not set(temporary_files(folder)) - before and time.monotonic() < begin + MOST_SECONDS:
            if os.waitpid(process, os.WNOHANG)[0]:
                return 'ended before'
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, rng.choice([0.03, 0.3])))
    else:
        time.sleep(rng.uniform(0.2, 1.1) * seconds)

    os.kill(process, sign)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in ENDS, (command, code, SAID.read_text()[-3000:])
    if code == 0:
        return 'ended before'
    return 'killed while it wrote' if set(temporary_files(folder)) - before else 'killed'


def killed(outcomes: Counter) -> int:
    return sum(outcomes.values()) - outcomes['ended before']


def kill_trainings(folder: Path, count: int, rng: random.Random) -> Counter:
    """A run with one checkpoint a step, of which it keeps one, is killed and resumed again and again."""
    config = small_config(folder)
    shapes = make_shapes(folder / 'shapes', num_train=2, num_val=1, size=32)
    work_dir = folder / 'work'
    flags = ['--work-dir', work_dir, '--cfg-options', *small_data(shapes)]

    def steps_up_to(last: int) -> list[object]:
        return [*flags, *iterations(last, save_every=1), 'default_hooks.checkpoint.max_keep_ckpts=1']

    finish(['tools/train.py', config, *steps_up_to(1)])

    outcomes, newest = Counter(), 1
    while killed(outcomes) < count:
        outcomes[kill(['tools/train.py', config, '--resume', *steps_up_to(10**6)], work_dir, 4, rng)] += 1
        steps = {path: int(path.stem.split('_')[1]) for path in work_dir.glob('iter_*.pth')}
        for path, step in steps.items():
            assert read_checkpoint(path)['meta']['iter'] == step, path
        assert max(steps.values()) >= newest, (steps, newest)
        newest = max(steps.values())

    finish(['tools/train.py', config, '--resume', *steps_up_to(newest + 2)])
    assert temporary_files(work_dir) == [] and not list(work_dir.glob('.*outdated*'))
    left = sorted(path.name for path in work_dir.iterdir() if path.is_file())
    assert [name for name in left if name.startswith('iter_')] == [f'iter_{newest + 2}.pth'], left
    print(f'training: went on to step {newest + 2}', flush=True)
    return outcomes


def kill_conversions(folder: Path, count: int, rng: random.Random) -> Counter:
    """One of two checkpoints is converted into the same folder; what is there is of one of them, or is refused."""
    config, sources = small_config(folder), two_checkpoints(folder)
    hashes = {Checkpoint.read(source).sha256 for source in sources}
    out, seen, refused = folder / 'deployed', Counter(), 0

    def command(source: Path) -> list[object]:
        return ['tools/convert_whole.py', config, source, '--out', out, '--overwrite', '--shape', 32, 32]

    def look() -> None:
        nonlocal refused
        files = [path.name for path in out.iterdir() if path.name in ('deploy.pth', 'deploy.py')]
        assert sorted(files) == ['deploy.pth', 'deploy.py'], files
        checkpoint = Checkpoint.read(out / 'deploy.pth')
        assert checkpoint.content['meta']['source_sha256'] in hashes
        seen[checkpoint.content['meta']['source_sha256']] += 1
        try:
            load_model(Config.fromfile(out / 'deploy.py'), checkpoint)
        except UserError as error:
            assert 'belong to one conversion' in str(error), error
            refused += 1

    outcomes = kills(out, command, sources, count, rng, look)
    print(f'conversion: {len(seen)} sources seen, {refused} mixes refused', flush=True)
    return outcomes


def kill_exports(folder: Path, count: int, rng: random.Random) -> Counter:
    """As `kill_conversions`, of an OpenVINO engine in three files."""
    config, sources = small_config(folder), two_checkpoints(folder)
    hashes = {Checkpoint.read(source).sha256 for source in sources}
    out, seen, refused = folder / 'engine', Counter(), 0

    def command(source: Path) -> list[object]:
        return ['tools/export.py', config, source, '--out', out, '--overwrite', '--shape', 32, 32, '--engine',
                'openvino']

    def look() -> None:
        nonlocal refused
        assert {'engine.xml', 'engine.bin', 'engine.json'} <= {path.name for path in out.iterdir()}
        try:
            description = read_description(out / 'engine.xml')
        except UserError as error:
            assert 'belong to one export' in str(error), error
            refused += 1
            return
        assert description.source_sha256 in hashes
        seen[description.source_sha256] += 1

    outcomes = kills(out, command, sources, count, rng, look)
    print(f'export: {len(seen)} sources seen, {refused} mixes refused', flush=True)
    return outcomes


def kills(
    out: Path, command: Callable[[Path], list[object]], sources: list[Path], count: int, rng: random.Random,
    look: Callable[[], None],
) -> Counter:
    """Kill `command` of one source after the other, with a look after each; at the end one run cleans up."""
    seconds = finish(command(sources[0]))
    look()
    outcomes = Counter()
    while killed(outcomes) < count:
        source = sources[sum(outcomes.values()) % 2]
        outcomes[kill(command(source), out.parent, seconds, rng)] += 1
        look()

    finish(command(sources[0]))
    look()
    assert temporary_files(out.parent) == [], temporary_files(out.parent)
    return outcomes


def small_config(folder: Path) -> Path:
    return derived_config(folder / 'small.py', f'model = dict(_delete_=True, **{shapes_model()})')


def two_checkpoints(folder: Path) -> list[Path]:
    cfg = Config.fromfile(small_config(folder))
    replace_sync_bn(cfg)
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(folder / f'{seed}.pth')
        torch.save(dict(state_dict=randomise_norms(build_model(cfg)).state_dict()), paths[-1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--training', type=int, default=80)
    parser.add_argument('--conversion', type=int, default=70)
    parser.add_argument('--export', type=int, default=50)
    args = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rng = random.Random(0)

    total = Counter()
    for work, count in ((kill_trainings, args.training), (kill_conversions, args.conversion),
                        (kill_exports, args.export)):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.monotonic()
            outcomes = work(Path(folder), count, rng)
            total += outcomes
            print(f'{work.__name__}: {dict(outcomes)}, {time.monotonic() - begin:.0f} s', flush=True)
    SAID.unlink()
    print(f'{killed(total)} kills: {dict(total)}; nothing lost, mixed or left')


if __name__ == '__main__':
    main()
