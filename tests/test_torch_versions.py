"""The functions that hide torch's versions, against torch itself."""

from __future__ import annotations

import pytest
import torch

from repvgg_mm.torch_versions import at_least, cpu_autocast_dtype


def test_the_type_of_autocast():
    x = torch.ones(2, 2)
    assert cpu_autocast_dtype() is None
    with torch.autocast('cpu', torch.bfloat16):
        assert cpu_autocast_dtype() == (x @ x).dtype == torch.bfloat16


@pytest.mark.parametrize('found, asked, holds', [
    ('2.1.2', '2.6', False), ('2.13.0+cpu', '2.6', True), ('2.6.0', '2.6', True), ('2.5.1', '2.6', False),
    ('3.0.0a0', '2.6', True), ('2.1.2', '2.1', True)])
def test_versions_are_compared_as_numbers(found, asked, holds, monkeypatch):
    monkeypatch.setattr(torch, '__version__', found)
    assert at_least(asked) is holds
