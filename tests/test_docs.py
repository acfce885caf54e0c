"""What the README says exists, and its tables are this code's."""

from __future__ import annotations

import re

import pytest
from tool_runs import ROOT, run_tool

from repvgg_mm import ARCHS

README = (ROOT / 'README.md').read_text()


def test_every_file_it_names_exists():
    folders = 'configs|tools|docs|tests|benchmarks|requirements|repvgg_mm'
    named = set(re.findall(rf'(?:{folders})/[\w./]+\.(?:py|sh|md|png|txt)', README))
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    configs = set(re.findall(r'`([a-z0-9]+_repvgg_\w+\.py)`', README))
    assert configs == {path.name for path in (ROOT / 'configs').glob('*.py')}


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r'(?:^|`)make (\w+)', README, re.MULTILINE))
    assert {'demo', 'test', 'setup'} <= targets
    for target in targets:
        assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)


def test_every_flag_it_names_is_known():
    tools = ('train', 'test', 'benchmark', 'convert_whole', 'convert_weights', 'export', 'make_shapes', 'predict')
    usage = ''.join(run_tool(f'tools/{name}.py', '--help').stdout for name in tools)
    flags = set(re.findall(r'(?<![\w-])--(?!no-build)[a-z][a-z-]+', README))
    assert {flag for flag in flags if flag not in usage} == set()


@pytest.mark.parametrize('name', ARCHS)
def test_table_of_variants(name):
    row = next(line for line in README.splitlines() if line.startswith(f'| {name} |'))
    assert f'| {ARCHS[name].stage_channels[2]}, {ARCHS[name].stage_channels[3]} |' in row


def test_no_placeholder_is_left():
    assert re.findall(r'\b[A-Z]+_[A-Z]+\b', README.replace('REPVGG_MM_DATA', '').replace('NODE_RANK', '').replace(
        'MASTER_ADDR', '').replace('PYTEST_ARGS', '')) == []
