"""`tools/export.py` says what it found; the engines themselves are tested in tests/export."""

from __future__ import annotations

import pytest
from tool_runs import CONFIG, assert_refused, run_tool

from repvgg_mm.__main__ import run

pytestmark = pytest.mark.stack


def test_what_it_says_of_an_engine(checkpoint, tmp_path, capsys):
    run(['export', CONFIG, str(checkpoint), '--out', str(tmp_path / 'engine'), '--shape', '64', '64', '--dynamic'])
    out = capsys.readouterr().out
    assert 'Relative error on 1x3x64x64: logits ' in out and 'Relative error on 2x3x77x91: logits ' in out
    assert f'Wrote {tmp_path / "engine" / "engine.onnx"} and engine.json.' in out
    assert '--minShapes=image:1x3x64x64 --optShapes=image:1x3x64x64 --maxShapes=image:4x3x64x64' in out
    assert sorted(path.name for path in (tmp_path / 'engine').iterdir()) == ['engine.json', 'engine.onnx']


def test_flags_that_do_not_go_together_are_refused_before_the_work(checkpoint, tmp_path):
    result = run_tool('tools/export.py', CONFIG, checkpoint, '--out', tmp_path / 'engine', '--precision', 'bf16',
                      check=False)
    assert_refused(result, 'Use --engine openvino')
    assert list(tmp_path.iterdir()) == []
