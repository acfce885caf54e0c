"""Two models that are almost equal make the same choices, and only then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repvgg_mm import compare_models
from repvgg_mm.convert.choices import ImposedChoices, RecordedChoices

SCORES = torch.tensor([[0.3, 0.50000001, 0.1, 0.5, 0.9]], dtype=torch.float64)
NEARLY = torch.tensor([[0.3, 0.5, 0.1, 0.50000001, 0.9]], dtype=torch.float64)


def topk(x: Tensor) -> Tensor:
    values, indices = x.topk(2, 1)
    return torch.cat([values, indices.double()], 1)


def worst(x: Tensor) -> Tensor:
    values, indices = x[:, [1, 3]].max(1)
    return torch.stack([values, indices.double()])


def worst_kept(x: Tensor) -> Tensor:
    values, indices = x[:, [1, 3]].min(dim=1, keepdim=True)
    return torch.cat([values, indices.double()])


def ordered(x: Tensor) -> Tensor:
    values, indices = x.sort(descending=True)
    return torch.cat([values, indices.double()])


def stably_ordered(x: Tensor) -> Tensor:
    values, indices = x.sort(dim=-1, stable=True)
    return torch.cat([values, indices.double()])


def above(x: Tensor) -> Tensor:
    return x[x > 0.500000005]


def places(x: Tensor) -> Tensor:
    return (x > 0.500000005).nonzero().double()


def largest(x: Tensor) -> Tensor:
    return x[:, 1:4].argmax(1).double()


def rounded(x: Tensor) -> Tensor:
    return (x * 199.999999).long().double()


CHOOSING = [topk, worst, worst_kept, ordered, stably_ordered, places, largest, rounded]


@pytest.mark.parametrize('choose', CHOOSING)
def test_a_near_tie_falls_the_same_way(choose):
    free, other = choose(SCORES), choose(NEARLY)
    assert free.shape != other.shape or (free - other).abs().max() > 0.4
    with RecordedChoices() as choices:
        expected = choose(SCORES)
    with ImposedChoices(choices.made) as imposed:
        actual = choose(NEARLY)
    torch.testing.assert_close(expected, free, rtol=0, atol=0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7)
    assert imposed.followed and not imposed.left


@pytest.mark.parametrize('choose', [topk, worst, worst_kept, ordered, stably_ordered, above])
def test_the_values_are_those_of_the_model_that_follows(choose):
    with RecordedChoices() as choices:
        expected = choose(SCORES)
    with ImposedChoices(choices.made):
        actual = choose(SCORES + 0.25)
    difference = (actual - expected).flatten()
    assert {round(one, 9) for one in difference.tolist()} <= {0.25, 0.0} and difference.max() > 0.2


def test_a_choice_that_is_written_into_afterwards_is_kept_as_it_was():
    def write(x: Tensor) -> Tensor:
        mask = x > 0.4
        mask[0, 0] = True
        return x[mask]

    with RecordedChoices() as choices:
        expected = write(SCORES)
    assert not choices.made[0][1][0, 0]
    with ImposedChoices(choices.made):
        torch.testing.assert_close(write(NEARLY), expected, rtol=0, atol=1e-7)


def test_another_way_through_a_model_is_its_own():
    with RecordedChoices() as choices:
        above(SCORES)
    with ImposedChoices(choices.made) as imposed:
        found = topk(NEARLY)
    assert not imposed.followed
    torch.testing.assert_close(found, topk(NEARLY), rtol=0, atol=0)


class Choosing(nn.Module):
    def __init__(self, error: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0., -error, 0., 0., 0.], dtype=torch.float64))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x + self.shift
        return [above(x), topk(x)]


def test_models_are_compared_on_the_same_choices():
    errors = compare_models(Choosing(0.), Choosing(1.5e-8), SCORES)
    assert list(errors) == ['output[0]', 'output[1]'] and 0 < errors.worst < 1e-7
    assert compare_models(Choosing(0.), Choosing(1e-3), SCORES).worst > 1e-4
