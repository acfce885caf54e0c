"""Adaptive average pooling as matrix products: torch's own for every size, and nothing else is replaced."""

from __future__ import annotations

import pytest
import torch
from helpers import image
from torch import nn

from repvgg_mm.export.pooling import ExactAdaptiveAvgPool2d, averaging_matrix, replace_adaptive_pooling


@pytest.mark.parametrize('bins', [1, 2, 3, 6, (6, 3), (2, None), (None, 4)])
@pytest.mark.parametrize('shape', [(6, 6), (7, 5), (30, 23), (64, 1), (2, 3)])
def test_equals_torch_at_any_size(shape, bins):
    x = image(2, 3, *shape)
    pair = bins if isinstance(bins, tuple) else (bins, bins)
    torch.testing.assert_close(ExactAdaptiveAvgPool2d(pair)(x), nn.AdaptiveAvgPool2d(bins)(x), rtol=1e-10, atol=1e-10)


def test_the_matrix_written_out():
    expected = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]).double()
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(averaging_matrix(5, 3, image()), expected, rtol=0, atol=1e-15)


def test_replaces_poolings_to_several_bins_wherever_they_are():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(3, 3, 1)),
                          nn.AdaptiveAvgPool2d((None, 2)))
    kept = model[0], model[1][1]
    x = image(1, 3, 7, 9, dtype=torch.float32)
    expected = [pool(x) for pool in (model[0], model[1][0], model[2])]
    assert replace_adaptive_pooling(model) is model
    assert (model[0], model[1][1]) == kept
    assert {type(model[1][0]), type(model[2])} == {ExactAdaptiveAvgPool2d}
    for pool, truth in zip((model[0], model[1][0], model[2]), expected):
        torch.testing.assert_close(pool(x), truth)
    assert isinstance(replace_adaptive_pooling(nn.AdaptiveAvgPool2d(2)), ExactAdaptiveAvgPool2d)
