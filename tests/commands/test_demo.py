"""`tools/demo.py`, with a few steps of training."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tool_runs import ROOT, run_tool

pytestmark = pytest.mark.stack


@contextmanager
def alone_in_this_clone() -> Iterator[None]:
    """The demo's data are in the clone, where the tests of the other stack may run at the same time."""
    name = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    with open(Path(tempfile.gettempdir()) / f'demo_of_{name}', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_demo(tmp_path):
    (tmp_path / 'demo' / 'segmentor').mkdir(parents=True)
    (tmp_path / 'demo' / 'thesis.txt').write_text('not of the demo')
    with alone_in_this_clone():
        result = run_tool('tools/demo.py', '--out', tmp_path / 'demo', '--iters', 4)
    assert len([line for line in (result.stdout + result.stderr).splitlines() if line.strip()]) <= 60
    assert '| segmentor: mIoU' in result.stdout and '| detector: bbox mAP' in result.stdout
    assert {path.name for path in (tmp_path / 'demo').iterdir()} == {
        'thesis.txt', 'segmentor', 'detector', 'segmentor_predictions.png', 'detector_predictions.png', 'training.png',
        'latency.png'}
