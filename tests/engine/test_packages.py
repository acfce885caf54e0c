"""Optional packages: imported, or a sentence with the command that installs them."""

from __future__ import annotations

import sys

import pytest

from repvgg_mm import UserError
from repvgg_mm.engine.packages import optional


def test_a_package_that_is_there():
    assert optional('numpy') is sys.modules['numpy']


def test_a_package_that_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match=r"needs onnxruntime, which cannot be imported \(.+\)\. Install the extra in "
                                        r"the repository: pip install -e '\.\[export\]'\."):
        optional('onnxruntime')
    with pytest.raises(UserError, match=r'needs absent\.part, .* Install it by hand\.'):
        optional('absent.part', 'Install it by hand')
