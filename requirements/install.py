"""Create a virtual environment that holds one OpenMMLab stack and this package.

    python3 requirements/install.py --stack openmmlab --venv .venv

mmcv is published as source only. Compiled as pip does it, its operators take
nine minutes on two cores, most of it spent on reading torch's headers again in
every file; here the headers are compiled once, ahead of the rest, and the many
small files become one. The wheel is kept in the user's cache, so a second
environment does not compile it again.

Runs on the standard library alone, because it runs before anything exists.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
STACKS = ('openmmlab', 'onedl', 'oldest')
TORCH_OF = {'openmmlab': 'torch.txt', 'onedl': 'torch.txt', 'oldest': 'oldest_torch.txt'}
COMPILE_FLAGS = '-O3 -DNDEBUG -g0 -w'

# Run by the environment's own python. Prints what the compiled operators depend on.
WHEEL_TAG = """
import sys, torch
gpu = torch.version.cuda if torch.cuda.is_available() else None
print(f'cp{sys.version_info.major}{sys.version_info.minor}-torch{torch.__version__}-{"cuda" + gpu if gpu else "cpu"}')
"""

# Run by the environment's own python. Prints the flags with which torch's BuildExtension
# compiles mmcv's C++ files: a precompiled header only counts for the same flags.
HEADER_FLAGS = """
import shlex
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
import sysconfig
from torch.utils.cpp_extension import include_paths
compiler = new_compiler()
customize_compiler(compiler)
flags = compiler.compiler_so[1:]
flags += [f'-I{path}' for path in [*include_paths(), sysconfig.get_path('include')]]
flags += ['-DTORCH_API_INCLUDE_EXTENSION_H', '-DTORCH_EXTENSION_NAME=_ext']
print(shlex.join(flags))
"""

# Run by the environment's own python. Prints the C++ that its torch's headers are written in.
CPP_STANDARD = """
import torch
print('c++20' if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14) else 'c++17')
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--stack', choices=STACKS, default='openmmlab')
    parser.add_argument('--venv', type=Path, default=Path('.venv'))
    parser.add_argument('--torch', metavar='VERSION', help='another torch than the pinned one, 2.4.1 for example')
    args = parser.parse_args()
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit('Python 3.10 to 3.13 is supported; this is '
                 f'{sys.version.split()[0]}. Run make with PYTHON=python3.11, for example.')

    if sys.version_info >= (3, 13) and args.stack != 'onedl':
        sys.exit('The OpenMMLab stack needs Python 3.12 or older: the setup.py of mmcv 2.1.0 fails on '
                 f'{sys.version.split()[0]}, before anything in it can be mended. Run make with STACK=onedl.')

    started = time.perf_counter()
    python = create_venv(args.venv)
    pins = (REQUIREMENTS / TORCH_OF[args.stack]).read_text()
    if args.torch:
        pins = re.sub(r'^torch==.*$', f'torch=={args.torch}', pins, flags=re.MULTILINE)
    install_torch(python, pins)
    stack_file = REQUIREMENTS / f'{args.stack}.txt'
    mmcv = next(line for line in stack_file.read_text().splitlines() if 'mmcv' in line)
    pip(python, '--no-deps', mmcv_wheel(python, mmcv))
    step(f'toolboxes of the {args.stack} stack')
    pip(python, '-r', stack_file, '-r', REQUIREMENTS / 'test.txt')
    if args.stack != 'oldest':  # torch's exporter, which the engines come from, is newer
        pip(python, '-r', REQUIREMENTS / 'export.txt')
    step('repvgg_mm')
    pip(python, '--no-build-isolation', '--no-deps', '-e', REQUIREMENTS.parent)
    (args.venv / 'ready').write_text(args.stack + '\n')
    print(f'Set-up of {args.venv} took {time.perf_counter() - started:.0f} s.')


def create_venv(venv: Path) -> Path:
    step(f'virtual environment {venv}')
    (venv / 'ready').unlink(missing_ok=True)
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    return venv.absolute() / 'bin' / 'python'


def install_torch(python: Path, pins: str) -> None:
    """The CPU build where there is no GPU and the package index has one: the other brings gigabytes of CUDA."""
    step('torch and build tools')
    build = ['-r', REQUIREMENTS / 'build.txt']
    packages = re.findall(r'^[^#\s]+', pins, flags=re.MULTILINE)
    if shutil.which('nvidia-smi') is None:
        cpu_packages = [re.sub(r'^(torch==[\d.]+)$', r'\1+cpu', package) for package in packages]
        if try_pip(python, *cpu_packages, *build):
            return
        step('no CPU build of torch was found, so the CUDA build comes, some gigabytes; '
             'PIP_EXTRA_INDEX_URL can name the index of PyTorch that has CPU builds')
    pip(python, *packages, *build)


def mmcv_wheel(python: Path, requirement: str) -> Path:
    """The path of a wheel of `requirement` with compiled operators, from the cache or built."""
    tag = output(python, '-c', WHEEL_TAG)
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'repvgg_mm' / tag
    name, version = requirement.split('==')
    pattern = f'{name.replace("-", "_")}-{version}-*.whl'
    if not any(cache.glob(pattern)):
        build_mmcv(python, requirement, cache, cpu_only='cuda' not in tag)
    else:
        step(f'{requirement} from {cache}')
    return next(cache.glob(pattern))


def build_mmcv(python: Path, requirement: str, cache: Path, cpu_only: bool) -> None:
    step(f'{requirement}: compiling its operators, about two minutes on two cores')
    cache.mkdir(parents=True, exist_ok=True)
    # The wheel is built in the cache's own file system and renamed: never half a wheel.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        run(python, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-build-isolation',
            '--no-binary', ':all:', '--dest', folder, requirement)
        with tarfile.open(next(Path(folder).glob('*.tar.gz'))) as archive:
            archive.extractall(folder, filter='data') if hasattr(tarfile, 'data_filter') else archive.extractall(folder)
        source = next(path for path in Path(folder).iterdir() if path.is_dir())
        standard = output(python, '-c', CPP_STANDARD)
        set_standard(source / 'setup.py', standard)
        # setuptools takes CFLAGS instead of the interpreter's own flags, so optimisation is named too.
        env = {'CFLAGS': COMPILE_FLAGS, 'CXXFLAGS': COMPILE_FLAGS, **os.environ,
               'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(os.cpu_count() or 1),
               'PATH': f'{python.parent}{os.pathsep}{os.environ["PATH"]}'}
        if cpu_only:
            merge_small_files(source)
            env['CFLAGS'] += f' -include {shlex.quote(str(precompiled_header(python, Path(folder), env, standard)))}'
        run(python, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
            '--wheel-dir', Path(folder) / 'wheel', source, env=env)
        for wheel in (Path(folder) / 'wheel').glob('*.whl'):
            os.replace(wheel, cache / wheel.name)


def set_standard(setup: Path, standard: str) -> None:
    """mmcv names the C++ of the torch of its time; C++20 is what torch 2.14's headers need."""
    text = setup.read_text(encoding='utf-8')
    setup.write_text(text.replace('-std=c++17', f'-std={standard}'), encoding='utf-8')


def merge_small_files(source: Path) -> None:
    """Turn the operators' entry points, one small file each, into one file that includes them all.

    The files in `cpu` stay as they are: some define the same names. So does pybind.cpp, which takes longest.
    """
    folder = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    merged = [path.rename(path.with_suffix('.inc')) for path in sorted(folder.glob('*.cpp')) if path.stem != 'pybind']
    (folder / 'merged.cpp').write_text(''.join(f'#include "{path.name}"\n' for path in merged))


def precompiled_header(python: Path, folder: Path, env: dict[str, str], standard: str) -> Path:
    """A header in `folder` with its compiled form beside it, to be included ahead of every file.

    It must come first: a compiler takes a precompiled header only before any other code, and the
    slowest of mmcv's files include something else ahead of torch's header. A compiler that does
    not take it reads the header itself: slower, the same result.
    """
    header = folder.absolute() / 'precompiled.hpp'
    header.write_text('#include <torch/types.h>\n')  # what mmcv's own pytorch_cpp_helper.hpp includes
    flags = [*shlex.split(output(python, '-c', HEADER_FLAGS, env=env)), f'-std={standard}']
    compiler = shlex.split(os.environ.get('CXX', 'c++'))
    subprocess.run([*compiler, *flags, '-x', 'c++-header', header, '-o', f'{header}.gch'],
                   check=False, env=env)
    return header


def pip_command(python: Path) -> list[object]:
    return [python, '-m', 'pip', 'install', '-qq', '--disable-pip-version-check']  # errors alone


def pip(python: Path, *arguments: object) -> None:
    run(*pip_command(python), *arguments)


def try_pip(python: Path, *arguments: object) -> bool:
    command = [str(part) for part in [*pip_command(python), *arguments]]
    return subprocess.run(command, capture_output=True).returncode == 0


def run(*command: object, env: dict[str, str] | None = None) -> None:
    result = subprocess.run([str(part) for part in command], env=env)
    if result.returncode:
        sys.exit(f'Set-up stopped: "{shlex.join(map(str, command))}" failed with exit code '
                 f'{result.returncode}; its message stands above. Mend it and run make again.')


def output(*command: object, env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()


def step(text: str) -> None:
    print(f'[{time.strftime("%H:%M:%S")}] {text}', flush=True)


if __name__ == '__main__':
    main()
