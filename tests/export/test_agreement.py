"""An engine agrees with PyTorch, or is no further from the exact outputs than PyTorch's own rounding."""

from __future__ import annotations

import pytest
import torch
from engines import description, quiet
from torch import Tensor, nn

from repvgg_mm import UserError
from repvgg_mm.engine.description import Comparison
from repvgg_mm.engine.engine import Engine
from repvgg_mm.export.agreement import check_agreement, check_errors, compare_detections, compare_engine, run_network
from repvgg_mm.export.export import export, prepare
from repvgg_mm.export.target import Target

LARGE = 65536.  # of whose neighbours in float32 the next one is 0.004 away
INPUTS = torch.linspace(-3, 3, 192).reshape(1, 3, 8, 8)


class Amplifies(nn.Module):
    """The identity, but for rounding."""

    def __init__(self, order: int = 1) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.order * LARGE) - self.order * LARGE


def engine_of(network: nn.Module, error: float = 0.) -> object:
    """What stands for an engine: it computes `network` in float32, and adds an error to one number."""
    def call(images: object) -> dict:
        outputs = network(torch.as_tensor(images)).clone()
        outputs.view(-1)[7] += error
        return dict(logits=outputs.numpy())

    call.description, call.computed_in = description(outputs=['logits']), 'f32'
    return call


def test_an_engine_that_differs_is_refused():
    close = Comparison([1, 3, 8, 9], dict(logits=1e-6))
    check_errors([close, Comparison([2, 3, 9, 9], dict(logits=1e-4))], 'fp32', 1e-4)
    with pytest.raises(UserError, match=r'fp32 must agree with PyTorch to 0\.0001 .* 2\.0e-04 on an input of 2x3x9x9'):
        check_errors([close, Comparison([2, 3, 9, 9], dict(logits=2e-4))], 'fp32', 1e-4)
    with pytest.raises(UserError, match='differs by nan'):
        check_errors([close, Comparison([2, 3, 9, 9], dict(logits=float('nan')))], 'fp32', 1e-4)


def test_an_engine_that_agrees_needs_no_explanation():
    agreement = check_agreement(engine_of(nn.Identity(), 1e-5), nn.Identity(), [INPUTS, INPUTS[:, :, 2:]], 'fp32')
    assert agreement.note == '' and agreement.tolerance == 1e-4 and agreement.computed_in == 'f32'
    assert [one.shape for one in agreement.compared] == [[1, 3, 8, 8], [1, 3, 6, 8]]
    assert agreement.compared[0].errors['logits'] == pytest.approx(1e-5 / 3, rel=0.1)


def test_rounding_that_the_network_amplifies_is_no_fault():
    own = compare_engine(engine_of(nn.Identity()), Amplifies(), INPUTS)['logits']
    other_rounding = engine_of(Amplifies(-1), 1e-3)
    with pytest.raises(UserError, match='must agree with PyTorch'):
        check_errors([Comparison([], compare_engine(other_rounding, Amplifies(), INPUTS))], 'fp32', 1e-4)
    agreement = check_agreement(other_rounding, Amplifies(), [INPUTS], 'fp32')
    assert 5e-4 < own < 2e-3 and agreement.tolerance == pytest.approx(4 * own, rel=0.1)
    assert agreement.note.startswith('This network amplifies the rounding of float32: PyTorch is 1.3e-03 away')


@pytest.mark.parametrize('engine, reference, precision', [
    (engine_of(Amplifies(), 0.1), Amplifies(), 'fp32'),           # beyond its rounding
    (engine_of(nn.Identity(), 1e-3), nn.Identity(), 'fp32'),      # there is no rounding
    (engine_of(nn.Identity(), float('nan')), Amplifies(), 'fp32'),
    (engine_of(Amplifies(), 1.), Amplifies(), 'bf16')])
def test_what_rounding_does_not_explain_is_refused(engine, reference, precision):
    with pytest.raises(UserError, match=rf'An engine in {precision} must agree with PyTorch to'):
        check_agreement(engine, reference, [INPUTS], precision)


def test_a_network_that_is_not_finite_explains_nothing():
    class Infinite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / torch.zeros_like(x)

    with pytest.raises(UserError, match='differs by inf'):
        check_agreement(engine_of(nn.Identity()), Infinite(), [INPUTS], 'fp32')


def test_random_numbers_explain_nothing():
    """As SegNeXt's decomposition draws them."""
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.01 * torch.randn_like(x)

    with pytest.raises(UserError, match='this model draws random numbers: two calls with the same input'):
        check_agreement(engine_of(Random()), Random(), [INPUTS], 'fp32')


def detections(count: int = 40) -> list[Tensor]:
    """Of two images, the second one with one row that is empty."""
    generator = torch.Generator().manual_seed(0)
    corners = 150 * torch.rand(2, count, 2, generator=generator)
    boxes = torch.cat([corners, corners + 50], 2)
    scores = torch.rand(2, count, generator=generator).sort(1, descending=True).values
    labels = torch.randint(3, (2, count), generator=generator)
    boxes[1, -1], scores[1, -1], labels[1, -1] = 0, 0, -1
    return [boxes, scores, labels]


def test_detections_are_compared_with_their_partners():
    expected = detections()
    found = [output.flip(1) for output in expected]  # in another order
    assert compare_detections(expected, found) == dict(boxes=0, scores=0)

    found[0] = found[0] + 0.01
    found[1] = found[1] * 1.001
    errors = compare_detections(expected, found)
    assert errors['boxes'] == pytest.approx(0.01 / expected[0].max(), rel=0.01)
    assert errors['scores'] == pytest.approx(0.001, rel=0.1)


def test_one_of_twenty_detections_may_be_another():
    expected = detections()
    for changed in (3, 4):  # of 79 on each side, of which 7 in all may differ
        found = [output.clone() for output in expected]
        found[2][0, :changed] = 9
        assert (compare_detections(expected, found)['boxes'] < 1e-6) == (changed == 3)


@pytest.mark.parametrize('change', ['boxes', 'scores', 'labels', 'nothing found', 'too much found', 'nan'])
def test_wrong_detections_are_seen(change):
    expected, found = detections(), detections()
    if change == 'boxes':
        found[0] = found[0][..., [1, 0, 3, 2]]
    elif change == 'scores':
        found[1] = found[1] / 2
    elif change == 'labels':
        found[2] = found[2] + (found[2] >= 0).long()
    elif change == 'nothing found':
        found[2] = torch.full_like(found[2], -1)
    elif change == 'too much found':
        expected[2] = torch.full_like(found[2], -1)
    else:
        found[1] = found[1] * float('nan')
    assert max(compare_detections(expected, found).values()) > 0.01


def test_wrong_masks_are_seen():
    expected, found = detections(), detections()
    masks = torch.rand(*expected[1].shape, 3, 2, generator=torch.Generator().manual_seed(0))
    expected, found = [*expected, masks], [*found, masks.clone()]
    assert compare_detections(expected, found) == dict(boxes=0, scores=0, masks=0)
    found[3][0] += 0.01
    assert compare_detections(expected, found) == dict(boxes=0, scores=0, masks=pytest.approx(0.01, rel=1e-3))


def test_no_detections_agree():
    nothing = [torch.zeros(1, 5, 4), torch.zeros(1, 5), torch.full((1, 5), -1)]
    assert compare_detections(nothing, nothing) == dict(boxes=0, scores=0)


def test_wrong_labels_are_seen(segmentor_cfg, segmentor_checkpoint, tmp_path):
    target = Target(shape=(75, 93), argmax=True, preprocess=True)
    export(segmentor_cfg, segmentor_checkpoint, tmp_path / 'out', target, progress=quiet)
    prepared = prepare(segmentor_cfg, segmentor_checkpoint, target, progress=quiet)
    engine = Engine(tmp_path / 'out' / 'engine.onnx')
    assert compare_engine(engine, prepared.reference, prepared.inputs[0])['labels'] < 1e-4

    def one_pixel_wrong(images: object) -> dict:
        labels = engine(images)['labels'].copy()
        labels[0, 40, 50] = (labels[0, 40, 50] + 1) % 3
        return dict(labels=labels)
    assert compare_engine(one_pixel_wrong, prepared.reference, prepared.inputs[0])['labels'] > 1e-4


@pytest.mark.parametrize('error, advice', [
    (ValueError('too small'), r'too small \(.*test_agreement\.py, line \d+\)\. Choose another with --shape H W'),
    (AttributeError("'tuple' has no attribute 'dim'"), r'It wants more than images: convert it, and run'),
    (AssertionError(), r'cannot take it: AssertionError \(.*test_agreement\.py')])
def test_a_network_that_cannot_take_the_input(error, advice):
    def network(images: Tensor) -> Tensor:
        raise error

    with pytest.raises(UserError, match=rf'runs on an input of 1x3x8x8 .*{advice}'):
        run_network(network, INPUTS)


def test_the_place_is_one_of_the_model():
    with pytest.raises(UserError, match=r'cannot take it: .*\(.*agreement\.py, line \d+\)'):
        run_network(nn.Conv2d(5, 1, 1), INPUTS)  # raised in torch


def test_outputs_of_another_shape():
    with pytest.raises(UserError, match=r'have the shapes \[\(1, 3, 4, 4\)\] instead of \[\(1, 3, 8, 8\)\]'):
        compare_engine(engine_of(nn.AvgPool2d(2)), nn.Identity(), INPUTS)
