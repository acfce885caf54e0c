"""Whether an engine computes what PyTorch does."""

from __future__ import annotations

import copy
import math
import os
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..convert.compare import relative_error
from ..convert.reproducible import running_in
from ..deploy.proof import TIMES_AS_FAR
from ..engine.description import Comparison
from ..engine.detections import in_float32
from ..engine.engine import Engine
from ..errors import UserError, reason
from ..openmmlab.model import decode_head_of

# Worst relative error of an output; in int8 before quantising. Half has three bits more than bfloat16.
TOLERANCES = dict(fp32=1e-4, fp16=0.1 / 2 ** 3, bf16=0.1, int8=1e-4)
TORCH = os.path.dirname(torch.__file__)  # where an error is raised says less than which part of a model called it
DECIDED_BY_ROUNDING = 1 / 20  # of detections, where two scores, or an overlap and its threshold, are equal but for it
DECIDED_IN_BF16 = 1 / 2
OF_OTHER_DATA = (AttributeError, TypeError, KeyError, NotImplementedError)  # raised by a model that wants more


class Agreement(NamedTuple):
    """An engine that agrees: its errors, what they were held against, and a note where rounding explains them."""

    compared: list[Comparison]
    tolerance: float
    computed_in: str
    note: str = ''


def check_agreement(engine: Engine, reference: nn.Module, inputs: Sequence[Tensor], precision: str) -> Agreement:
    """The errors of `compare_engine` on each input, none above the tolerance of `precision`.

    Where a network amplifies rounding, PyTorch's float32 is as far from the exact outputs, those in float64, as the
    engine's is. Then the tolerance is `TIMES_AS_FAR` times that distance.

    Raises:
        UserError: an output differs by more than rounding explains.
    """
    names = set(engine.description.outputs)
    share = DECIDED_IN_BF16 if precision in ('bf16', 'fp16') else DECIDED_BY_ROUNDING
    compared = []
    for one in inputs:
        errors = compare_engine(engine, reference, one, share)
        compared.append(Comparison(list(one.shape), errors))

    tolerance = TOLERANCES[precision]
    try:
        check_errors(compared, precision, tolerance)
    except UserError:
        in_float32 = precision in ('fp32', 'int8') and all(one.is_floating_point() for one in inputs)
        if not in_float32 or (names & {'boxes', 'labels'}) == {'labels'}:
            raise
        return _explained_by_rounding(engine, reference, inputs, precision)
    return Agreement(compared, tolerance, engine.computed_in)


@torch.no_grad()
def compare_engine(
    engine: Engine, reference: nn.Module, inputs: Tensor, share: float = DECIDED_BY_ROUNDING
) -> dict[str, float]:
    """Worst relative error of each output of `engine` on `inputs`, against the network `reference` in PyTorch.

    Of a label map it is the most that a chosen class's logit lies below the largest, relative to the
    largest logit of all: two classes that are equal in float32 may be chosen either way. Of detections see
    `compare_detections`.

    Raises:
        UserError: an output has another shape.
    """
    expected = run_network(reference, inputs)
    outputs = in_float32(engine(inputs.numpy()))
    found = {name: torch.from_numpy(array) for name, array in outputs.items()}
    detects = {'boxes', 'labels'} <= set(found)
    if 'labels' in found and not detects:
        logits = expected[0]
        if logits.shape[1] == 1:
            logits = _two_classes(logits, decode_head_of(reference.model).threshold)
        chosen = logits.gather(1, found['labels'].long()[:, None])
        expected = [logits.amax(1)]
        found = dict(labels=chosen[:, 0])

    expected_shapes = [tuple(tensor.shape) for tensor in expected]
    found_shapes = [tuple(tensor.shape) for tensor in found.values()]
    if expected_shapes != found_shapes:
        raise UserError(
            f'An engine gives what PyTorch gives, and for an input of {tuple(inputs.shape)} its outputs '
            f'have the shapes {found_shapes} instead of {expected_shapes}. Nothing was written: export without '
            '--dynamic.')
    if detects:
        return compare_detections(expected, list(found.values()), share)
    return {name: relative_error(tensor, found[name]) for name, tensor in zip(found, expected)}


def compare_detections(
    expected: Sequence[Tensor], found: Sequence[Tensor], share: float = DECIDED_BY_ROUNDING
) -> dict[str, float]:
    """Worst errors of `boxes` and `scores`, relative to the largest coordinate and score, and of `masks`, to partners.

    The partner of a detection is the nearest of the same image and label on the other side. Rounding may turn which
    of two boxes is suppressed, so the worst `share` of the detections is left out. The error of one without any partner
    is infinite.

    Args:
        expected: boxes (N, K, 4), scores (N, K), labels (N, K), -1 where there is none, perhaps masks (N, K, h, w).
        found: the same of an engine.
    """
    largest = expected[0].abs().max().clamp(min=1)
    best = expected[1].max().clamp(min=1e-30)
    scale = torch.cat([largest.expand(4), best.expand(1)])
    names = ['boxes', 'scores', 'masks'][:len(expected) - 1]

    differences = []
    for image in range(len(expected[0])):
        one, other = (_detected(outputs, image) for outputs in (expected, found))
        differences += [_to_partners(one, other, scale), _to_partners(other, one, scale)]
    differences = torch.cat(differences)                                  # D, names

    kept = len(differences) - int(len(differences) * share)
    order = differences.amax(1).argsort()[:kept]
    worst = differences[order].max(0).values.tolist() if kept else [0.] * len(names)
    return dict(zip(names, worst))


def check_errors(compared: Sequence[Comparison], precision: str, tolerance: float) -> None:
    """UserError if an output of an engine differs from PyTorch's by more than `tolerance`, relative."""
    for comparison in compared:
        for name, error in comparison.errors.items():
            if not error <= tolerance:
                raise UserError(
                    f'An engine in {precision} must agree with PyTorch to {tolerance:g} relative, and {name} '
                    f'differs by {error:.1e} on an input of {size_text(comparison.shape)}. Nothing was '
                    'written: try the other --engine, or look for values beyond float32.')


def run_network(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Its outputs; UserError if it cannot take the input."""
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except Exception as error:  # whatever a model raises
        frames = traceback.extract_tb(error.__traceback__)
        place = [frame for frame in frames if not frame.filename.startswith(TORCH)][-1]
        next_step = 'Choose another with --shape H W.'
        if isinstance(error, OF_OTHER_DATA):
            next_step = 'It wants more than images: convert it, and run the deploy form with PyTorch.'
        raise UserError(
            f'The model runs on an input of {size_text(inputs.shape)} before it is exported, and cannot take it: '
            f'{reason(error)} ({place.filename}, line {place.lineno}). {next_step}') from None
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def size_text(shape: Sequence[int]) -> str:
    """'1x3x512x512' and its like."""
    return 'x'.join(map(str, shape))


def _explained_by_rounding(
    engine: Engine, reference: nn.Module, inputs: Sequence[Tensor], precision: str
) -> Agreement:
    """The agreement with the exact outputs, if the engine is as near to them as PyTorch's float32 is."""
    first, second = (run_network(reference, inputs[0]) for _ in range(2))
    if not all(map(torch.equal, first, second)):
        raise UserError(
            'An engine is compared with PyTorch, and this model draws random numbers: two calls with the same input '
            'give two outputs. Nothing was written: let its head start from fixed numbers in evaluation.')

    exact = copy.deepcopy(reference).double()
    own, compared = 0., []
    for one in inputs:
        with running_in(torch.float64):
            expected = run_network(exact, one.double())
        in_float32 = run_network(reference, one)
        found = [torch.from_numpy(array) for array in engine(one.numpy()).values()]

        names = engine.description.outputs
        own = max(own, *_errors(names, expected, in_float32).values())
        errors = _errors(names, expected, found)
        compared.append(Comparison(list(one.shape), errors))

    tolerance = TOLERANCES[precision]
    if math.isfinite(own):
        tolerance = max(tolerance, TIMES_AS_FAR * own)
    check_errors(compared, precision, tolerance)
    return Agreement(compared, tolerance, engine.computed_in, (
        f'This network amplifies the rounding of float32: PyTorch is {own:.1e} away from its own exact outputs, those '
        f'in float64. The engine is held against these, to {tolerance:.1e}.'))


def _errors(names: Sequence[str], expected: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    """Of the outputs of these names, of detections to their partners."""
    if 'labels' in names:
        return compare_detections(expected, found)
    return dict(zip(names, map(relative_error, expected, found)))


def _detected(outputs: Sequence[Tensor], image: int) -> tuple[Tensor, Tensor]:
    """Boxes with their scores and masks (D, 5 + h * w), and labels (D,), of an image."""
    boxes, scores, labels, *masks = (output[image] for output in outputs)
    rows = torch.cat([boxes, scores[:, None], *(mask.flatten(1) for mask in masks)], 1)
    return rows[labels >= 0], labels[labels >= 0]


def _to_partners(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], scale: Tensor) -> Tensor:
    """Errors of box, score and, if any, mask (D, 2 or 3) of each of `one` to the nearest of `other` of its label."""
    rows, labels = one
    partners, partner_labels = other
    distances = (rows[:, None, :5] - partners[:, :5]).abs() / scale       # D, E, 5
    parts = [distances[..., :4].amax(2), distances[..., 4]]
    if rows.shape[1] > 5:
        parts.append((rows[:, None, 5:] - partners[:, 5:]).abs().amax(2))
    errors = torch.stack(parts, 2)
    absent = errors.new_full((len(rows), 1, len(parts)), math.inf)
    errors = torch.where((labels[:, None] == partner_labels)[..., None], errors, math.inf)
    errors = torch.cat([errors, absent], 1).nan_to_num(math.inf)
    nearest = errors[..., :2].amax(2).argmin(1)
    return errors[torch.arange(len(rows)), nearest]


def _two_classes(logits: Tensor, threshold: float) -> Tensor:     # N, 1, H, W -> N, 2, H, W
    """Of one channel, whose class is 1 where the sigmoid is above `threshold`."""
    margin = logits[:, 0] - torch.logit(torch.tensor(threshold))
    return torch.stack([torch.zeros_like(margin), margin], 1)
