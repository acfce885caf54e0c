"""Generated images, made once for all these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from repvgg_mm.demo.shapes import make_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=6, size=64)
