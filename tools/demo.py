"""From nothing to a verified deploy segmentor: python tools/demo.py

Makes the shapes dataset, runs the tools a user runs (train, test, convert_whole, test again) and
draws what came out in work_dirs/demo.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from repvgg_mm.cli import run_tool
from repvgg_mm.errors import UserError

CONFIG = 'configs/pspnet_repvgg_a0_shapes.py'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--iters', type=int, help='training steps, those of the config by default')
    args = parser.parse_args()
    if not Path(CONFIG).is_file():
        raise UserError(f'The demo runs in the root of the repository, where {CONFIG} is; this is {Path.cwd()}. '
                        'Change to the folder that git clone made.')
    start = time.perf_counter()
    if args.out.exists():
        shutil.rmtree(args.out)
    run('tools/make_shapes.py', 'data/shapes')
    options = [] if args.iters is None else [
        '--cfg-options', f'train_cfg.max_iters={args.iters}', f'train_cfg.val_interval={args.iters}']
    run('tools/train.py', CONFIG, '--work-dir', args.out / 'train', *options)
    checkpoint = Path((args.out / 'train' / 'last_checkpoint').read_text())
    run('tools/test.py', CONFIG, checkpoint, '--work-dir', args.out / 'test_training_form')
    run('tools/convert_whole.py', CONFIG, checkpoint, '--out', args.out / 'deploy')
    deploy = args.out / 'deploy'
    run('tools/test.py', deploy / 'deploy.py', deploy / 'deploy.pth', '--work-dir', args.out / 'test_deploy_form')

    from repvgg_mm.demo import summarise
    print(summarise(CONFIG, checkpoint, args.out))
    print(f'The demo took {time.perf_counter() - start:.0f} s.')


def run(*command: object) -> None:
    words = [str(word) for word in command]
    print(f'\n$ python {shlex.join(words)}', flush=True)
    result = subprocess.run([sys.executable, *words])
    if result.returncode:
        raise UserError(f'The demo stopped: "python {shlex.join(words)}" failed with exit code {result.returncode}; '
                        'its message stands above. Mend it and run make demo again.')


if __name__ == '__main__':
    run_tool(main)
