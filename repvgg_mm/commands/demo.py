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

CONFIGS = {
    'segmentor': 'configs/pspnet_repvgg_a0_shapes.py',
    'detector': 'configs/retinanet_repvgg_a0_shapes.py',
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--iters', type=int, help='training steps, those of the configs by default')
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
        train_and_convert(config, args.out / task, args.iters)

    print(summarise(CONFIGS, args.out))
    print(f'The demo took {time.perf_counter() - start:.0f} s.')


def train_and_convert(config: str, out: Path, iters: int | None) -> None:
    """Train, test, convert and test the deploy form; the folders are those that `summarise` reads."""
    options = []
    if iters is not None:
        options = ['--cfg-options', f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}']
    run('tools/train.py', config, '--work-dir', out / 'train', *options)

    checkpoint = find_latest_checkpoint(str(out / 'train'))
    run('tools/test.py', config, checkpoint, '--work-dir', out / 'test_training_form')

    deploy = out / 'deploy'
    run('tools/convert_whole.py', config, checkpoint, '--out', deploy, '--shape', 96, 96)
    run('tools/test.py', deploy / 'deploy.py', deploy / 'deploy.pth', '--work-dir', out / 'test_deploy_form')


def run(*command: object) -> None:
    """One tool as a process, after its command line; UserError if it fails."""
    words = [str(word) for word in command]
    line = shlex.join(words)
    print(f'\n$ python {line}', flush=True)
    result = subprocess.run([sys.executable, *words])
    if result.returncode:
        raise UserError(
            f'The demo stopped: "python {line}" failed with exit code {result.returncode}; '
            'its message stands above. Mend it and run make demo again.')
