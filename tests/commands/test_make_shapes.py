"""`tools/make_shapes.py`: what it refuses. The images themselves: tests/demo/test_shapes.py."""

from __future__ import annotations

import pytest
from tool_runs import assert_refused, run_tool

pytestmark = pytest.mark.stack


@pytest.mark.parametrize(('arguments', 'expected'), [
    (['--size', 0], '1 or more pixels'), (['--seed', -1], 'seed -1'), (['--train', 0], 'got 0 and 80 images'),
    (['--classification', '--val', -2], 'got 200 and -2 images')])
def test_shapes_that_cannot_be_made(arguments, expected, tmp_path):
    assert_refused(run_tool('tools/make_shapes.py', tmp_path / 'new', *arguments, check=False), expected)
    assert_refused(run_tool('tools/make_shapes.py', '/proc/x', check=False), '/proc/x could not be written')
    assert list(tmp_path.iterdir()) == []
