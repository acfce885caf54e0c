"""From nothing to a verified deploy segmentor and detector, with pictures.

Makes the shapes dataset, runs the commands a user runs (train, test, convert, test again) for both
and draws what came out.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from ..demo.summary import summarise
from ..errors import UserError
from ..openmmlab.shipped import shipped_config
from .screen import open_screen

CONFIGS = {'segmentor': 'pspnet_repvgg_a0_shapes.py', 'detector': 'retinanet_repvgg_a0_shapes.py'}


def run(args: argparse.Namespace) -> None:
    configs = {task: shipped_config(Path(name)) for task, name in CONFIGS.items()}
    start = time.perf_counter()
    for task in configs:
        shutil.rmtree(args.out / task, ignore_errors=True)  # of an earlier demo
    run_command('make-shapes', 'data/shapes')
    for task, config in configs.items():
        print()
        train_and_convert(config, args.out / task, args)

    with open_screen(args.verbose) as screen:
        screen.say(summarise(configs, args.out))
    print(f'The demo took {time.perf_counter() - start:.0f} s.')


def train_and_convert(config: Path, out: Path, args: argparse.Namespace) -> None:
    """Train, test, convert and test the deploy form; the folders are those that `summarise` reads."""
    flags = ['--verbose'] if args.verbose else []
    options = []
    if args.iters is not None:
        options = ['--cfg-options', f'train_cfg.max_iters={args.iters}', f'train_cfg.val_interval={args.iters}']
    run_command('train', config, '--work-dir', out / 'train', *flags, *options)

    checkpoint = find_latest_checkpoint(str(out / 'train'))
    run_command('test', config, checkpoint, '--work-dir', out / 'test_training_form', *flags)

    deploy = out / 'deploy'
    run_command(
        'convert', config, checkpoint, '--out', deploy, '--shape', 96, 96, '--latency-seconds', 0, *flags,
        first_part=not args.verbose)  # what both forms cost stands at the end, of both tasks
    run_command('test', deploy / 'deploy.py', deploy / 'deploy.pth', '--work-dir', out / 'test_deploy_form', *flags)


def run_command(*command: object, first_part: bool = False) -> None:
    """One command as a process, after its command line; of its output all, or what comes before an empty line.

    Raises:
        UserError: it failed.
    """
    words = [str(word) for word in command]
    line = shlex.join(words)
    print(f'$ repvgg-mm {line}', flush=True)
    result = subprocess.run(
        [sys.executable, '-m', 'repvgg_mm', *words], stdout=subprocess.PIPE if first_part else None, text=True)
    if first_part:
        shown, _, _ = result.stdout.partition('\n\n')
        print(shown.rstrip(), flush=True)

    if result.returncode:
        raise UserError(
            f'The demo stopped: "repvgg-mm {line}" failed with exit code {result.returncode}; '
            'its message stands above. Mend it and run the demo again.')
