"""Engines that an attacker changed: no tool runs code, writes elsewhere, waits for ever or is killed by one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from engines import Trained
from hostile_engines import ATTACKS
from tool_runs import measured_runs

# What a graph computes, and how its classes are called, is as its writer wants it.
HARMLESS = {'classes that clear the screen', 'a million classes', 'entities that make a billion words',
            'entity that names a file'}
MOST_MEMORY = 200  # MB


@pytest.fixture(scope='module')
def attacked(segmentor, tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp('attacked')
    found = {}
    for number, (name, (engine, change)) in enumerate(ATTACKS.items()):
        whole = segmentor.engine_file(engine)
        folder = base / str(number) / 'engine'
        shutil.copytree(whole.parent, folder)
        change(folder)
        found[name] = folder / whole.name
    return found


def command(tool: str, path: Path, trained: Trained, shapes: Path) -> list[object]:
    image, *_ = (shapes / 'images/val').glob('*.jpg')
    out = path.parent.with_name(tool)
    return {
        'engine': ['engine', path],
        'benchmark.py': ['tools/benchmark.py', path, '--shape', 96, 96, '--rounds', 2],
        'test.py': ['tools/test.py', trained.path, path, '--work-dir', out],
        'predict.py': ['tools/predict.py', trained.path, path, image, '--out', out],
    }[tool]


@pytest.mark.parametrize('tool', ['engine', 'benchmark.py', 'test.py', 'predict.py'])
def test_no_engine_does_harm(attacked, segmentor, shapes, tmp_path, tool):
    assert len(ATTACKS) >= 40
    runs = [command(tool, path, segmentor, shapes) for path in attacked.values()]
    results = measured_runs(runs, tmp_path)
    accepted = set()
    for name, result in zip(attacked, results, strict=True):
        assert result.code in (0, 1) and 'Traceback' not in result.message, (name, result)
        assert '\x1b' not in result.message, (name, result)
        assert result.memory <= MOST_MEMORY and result.seconds < 30, (name, result)
        if result.code == 0:
            accepted.add(name)
    assert accepted <= HARMLESS | ({'10^13 numbers from one'} if tool == 'engine' else set())
    assert not list(attacked['weights in a pipe'].parents[2].rglob('escaped'))
