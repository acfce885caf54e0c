"""`tools/predict.py` draws and says where; what is drawn is tested in tests/inference."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tool_runs import CONFIG

from repvgg_mm import UserError
from repvgg_mm.__main__ import run

pytestmark = pytest.mark.stack


def test_flags_reach_the_drawing(checkpoint, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((48, 64, 3), 90, np.uint8))
    arguments = [CONFIG, str(checkpoint), str(tmp_path / 'a.png'), '--out', str(tmp_path / 'drawn'), '--device', 'cpu']
    run(['predict', *arguments])
    assert f'Drew 1 in {tmp_path / "drawn"}, such as {tmp_path / "drawn" / "a.png"}' in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / 'drawn' / 'a.png')) is not None
    with pytest.raises(UserError, match='add --overwrite'):
        run(['predict', *arguments])
    run(['predict', *arguments, '--overwrite'])
