"""What may import what: fusion <- block <- backbone, and no toolbox unless a user asks for one."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import repvgg_mm

PACKAGE = Path(repvgg_mm.__file__).parent


def imports_of(module: str) -> set[str]:
    """Top-level names of absolute imports, and '.name' for modules of the package itself, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f'{module}.py').read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f'.{node.module.split(".")[0]}'} if node.module else {f'.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split('.')[0])
    return {f'.{name}' if name == 'repvgg_mm' else name for name in found}


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('module, internal', [
    ('fusion', set()), ('branch_sum', set()), ('block', {'.branch_sum', '.errors', '.fusion'}), ('errors', set())])
def test_arithmetic_and_block_import_torch_alone(module, internal):
    found = imports_of(module)
    assert {name for name in found if name.startswith('.')} == internal
    assert {name for name in found if not name.startswith('.')} <= {'torch', *sys.stdlib_module_names}


@pytest.mark.parametrize('module, not_below', [
    ('archs', ('fusion', 'block', 'backbone', 'checkpoint', 'compare', 'convert')),
    ('backbone', ('fusion', 'checkpoint', 'compare', 'convert')),
    ('checkpoint', ('fusion', 'block', 'backbone', 'compare', 'convert')),
    ('compare', ('fusion', 'checkpoint', 'convert'))])
def test_dependencies_point_one_way(module, not_below):
    assert imports_of(module).isdisjoint(f'.{name}' for name in not_below)


def test_there_is_no_circle():
    internal = {path.stem: {name[1:] for name in imports_of(path.stem) if name.startswith('.')}
                for path in PACKAGE.glob('*.py') if path.stem != '__init__'}
    while leaves := [module for module, needs in internal.items() if not needs & set(internal)]:
        for module in leaves:
            del internal[module]
    assert internal == {}


def test_importing_the_package_imports_no_toolbox_and_prints_nothing():
    run = run_python('import sys, repvgg_mm; assert not {"mmseg", "mmdet", "timm", "onnx"} & set(sys.modules)')
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')


@pytest.mark.parametrize('missing', ['mmcv', 'mmengine'])
def test_without_the_stack_the_error_says_what_to_install(missing):
    run = run_python(f'import sys; sys.modules[{missing!r}] = None; import repvgg_mm')
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith(f'ImportError: repvgg_mm needs mmengine and mmcv, and {missing}')
    assert 'cannot be imported (' in last
    assert "pip install --no-build-isolation -e '.[openmmlab]' or '.[onedl]'" in last


@pytest.mark.parametrize('name', repvgg_mm.__all__)
def test_public_names(name):
    assert getattr(repvgg_mm, name).__doc__ or name == 'ARCHS'
