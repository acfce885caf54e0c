"""From nothing to a verified deploy segmentor and detector, with pictures.

Makes the shapes dataset, runs the tools a user runs (train, test, convert_whole, test again) for both
and draws what came out.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from ..demo.summary import summarise
from ..errors import UserError
from .flags import add_verbose
from .screen import open_screen

CONFIGS = {
    'segmentor': 'configs/pspnet_repvgg_a0_shapes.py',
    'detector': 'configs/retinanet_repvgg_a0_shapes.py',
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--iters', type=int, help='training steps, those of the configs by default')
    add_verbose(parser)
    args = parser.parse_args(argv)
    for config in CONFIGS.values():
        if not Path(config).is_file():
            raise UserError(
                f'The demo runs in the root of the repository, where {config} is; this is {Path.cwd()}. '
                'Change to the folder that git clone made.')

    start = time.perf_counter()
    for task in CONFIGS:
        shutil.rmtree(args.out / task, ignore_errors=True)  # of an earlier demo
    run('tools/make_shapes.py', 'data/shapes')
    for task, config in CONFIGS.items():
        print()
        train_and_convert(config, args.out / task, args)

    with open_screen(args.verbose) as screen:
        screen.say(summarise(CONFIGS, args.out))
    print(f'The demo took {time.perf_counter() - start:.0f} s.')


def train_and_convert(config: str, out: Path, args: argparse.Namespace) -> None:
    """Train, test, convert and test the deploy form; the folders are those that `summarise` reads."""
    flags = ['--verbose'] if args.verbose else []
    options = []
    if args.iters is not None:
        options = ['--cfg-options', f'train_cfg.max_iters={args.iters}', f'train_cfg.val_interval={args.iters}']
    run('tools/train.py', config, '--work-dir', out / 'train', *flags, *options)

    checkpoint = find_latest_checkpoint(str(out / 'train'))
    run('tools/test.py', config, checkpoint, '--work-dir', out / 'test_training_form', *flags)

    deploy = out / 'deploy'
    run('tools/convert_whole.py', config, checkpoint, '--out', deploy, '--shape', 96, 96, *flags,
        first_part=not args.verbose)  # what both forms cost stands at the end, of both tasks
    run('tools/test.py', deploy / 'deploy.py', deploy / 'deploy.pth', '--work-dir', out / 'test_deploy_form', *flags)


def run(*command: object, first_part: bool = False) -> None:
    """One tool as a process, after its command line; of its output all, or what comes before an empty line.

    Raises:
        UserError: it failed.
    """
    words = [str(word) for word in command]
    line = shlex.join(words)
    print(f'$ python {line}', flush=True)
    result = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE if first_part else None, text=True)
    if first_part:
        shown, _, _ = result.stdout.partition('\n\n')
        print(shown.rstrip(), flush=True)

    if result.returncode:
        raise UserError(
            f'The demo stopped: "python {line}" failed with exit code {result.returncode}; '
            'its message stands above. Mend it and run make demo again.')
