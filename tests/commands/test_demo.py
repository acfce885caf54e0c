"""`tools/demo.py`, with a few steps of training."""

from __future__ import annotations

import pytest
from tool_runs import run_tool

pytestmark = pytest.mark.stack


def test_demo(tmp_path):
    (tmp_path / 'demo' / 'segmentor').mkdir(parents=True)
    (tmp_path / 'demo' / 'thesis.txt').write_text('not of the demo')
    result = run_tool('tools/demo.py', '--out', tmp_path / 'demo', '--iters', 4)
    assert '| segmentor: mIoU' in result.stdout and '| detector: bbox mAP' in result.stdout
    assert {path.name for path in (tmp_path / 'demo').iterdir()} == {
        'thesis.txt', 'segmentor', 'detector', 'segmentor_predictions.png', 'detector_predictions.png', 'training.png',
        'latency.png'}
