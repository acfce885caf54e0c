"""Create an environment for tests that holds what a toolbox environment must not: torchvision, and what needs it.

    python3 requirements/peers.py --stack openmmlab --venv .venv

makes `.venv-peers`, which sees every package of `.venv` and cannot replace one: torchvision is
installed without its dependencies, as it would bring another torch.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from install import REQUIREMENTS, STACKS, pip, step

HOOK = 'torchvision_beside_cpu_torch'
CONTENT = "import site; site.addsitedir({packages!r})\nimport " + HOOK + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--stack', choices=STACKS, default='openmmlab')
    parser.add_argument('--venv', type=Path, default=Path('.venv'))
    args = parser.parse_args()
    peers = args.venv.with_name(f'{args.venv.name}-peers')
    step(f'virtual environment {peers}')
    subprocess.run([sys.executable, '-m', 'venv', '--clear', peers], check=True)
    python = peers.absolute() / 'bin' / 'python'
    site_packages = Path(packages_of(python))
    shutil.copy(REQUIREMENTS / f'{HOOK}.py', site_packages)
    packages = packages_of(args.venv.absolute() / 'bin' / 'python')
    (site_packages / 'packages_of_venv.pth').write_text(CONTENT.format(packages=packages))
    pip(python, '-c', REQUIREMENTS / 'build.txt', '-r', REQUIREMENTS / f'{args.stack}_classification.txt')
    pip(python, '--no-deps', '-r', REQUIREMENTS / 'peers.txt')
    (peers / 'ready').write_text(args.stack + '\n')


def packages_of(python: Path) -> str:
    return subprocess.run([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
                          check=True, capture_output=True, text=True).stdout.strip()


if __name__ == '__main__':
    main()
