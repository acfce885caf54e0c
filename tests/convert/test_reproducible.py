"""Nothing but its weights decides what a model gives, and everything is as before afterwards."""

from __future__ import annotations

import pytest
import torch
from helpers import pspnet

from repvgg_mm.convert.reproducible import evaluating, running_in


def test_random_numbers_are_the_same_and_those_outside_go_on():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with running_in(torch.float32):
        first = torch.rand(2)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)
    with running_in(torch.float32):  # after other numbers
        second = torch.rand(2)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_numbers_outside_go_on_after_float64_too():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with running_in(torch.float64):
        torch.rand(7)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


@pytest.mark.parametrize('make', [
    lambda: torch.zeros(2, dtype=torch.float32), lambda: torch.tensor([1.5]), lambda: torch.ones(2).cumsum(0),
    lambda: torch.arange(3).float(), lambda: torch.arange(3).to(torch.float32), lambda: torch.zeros(2).type_as(
        torch.ones(1, dtype=torch.float32))])
def test_constants_in_float32_become_float64(make):
    assert make().dtype == torch.float32
    with running_in(torch.float64):
        assert make().dtype == torch.float64
    with running_in(torch.float32):
        assert make().dtype == torch.float32
    assert make().dtype == torch.float32


def test_the_default_is_back_after_an_error():
    with pytest.raises(KeyError), running_in(torch.float64):
        raise KeyError
    assert torch.get_default_dtype() == torch.float32


def test_suppression_runs_in_float64_and_gives_what_it_gives():
    ops = pytest.importorskip('mmcv.ops')
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator)
    boxes = torch.cat([corners, corners + 0.3], 1)
    scores = torch.rand(60, generator=generator)
    expected, kept = ops.nms(boxes, scores, 0.5)
    with running_in(torch.float64):
        found, kept_in_float64 = ops.nms(boxes.double(), scores.double(), 0.5)
    assert 5 < len(kept) < 60 and found.dtype == torch.float64
    torch.testing.assert_close(kept_in_float64, kept)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match='Double'):
        ops.nms(boxes.double(), scores.double(), 0.5)


def test_every_module_is_back_in_its_own_mode():
    model = pspnet().train()
    model.decode_head.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before
