"""What models predict on images of a config's validation set, drawn beside the truth, and where they differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..openmmlab.data import validation_set
from ..openmmlab.model import is_detector, is_segmentor
from .pictures import (
    Difference,
    ImageComparison,
    boxes_of,
    colours_of,
    complete,
    instances_of,
    legend_of,
    mark_boxes,
    mark_pixels,
    picture_row,
    predict,
    read_sample,
)

SHIFT = 1.0  # pixels by which two boxes may differ and count as the same
LEAST = 0.01  # pixels and percent points: less is not told apart


class SideBySide(NamedTuple):
    comparisons: list[ImageComparison]
    legend: list[tuple[str, str]]  # class and CSS colour
    inputs: list[Tensor]           # what the models took, (1, C, H, W) each
    available: int                 # images in the validation set


@torch.no_grad()
def side_by_side(cfg: Config, models: dict[str, nn.Module], count: int = 4) -> SideBySide:
    """Images at even distances of the validation set, with the truth and the predictions of two models in eval mode.

    A training form predicts branch by branch: fused on the fly it would only be compared with itself. An engine is an
    `EngineModel`; the first of `models` is a model of PyTorch.

    Models that are neither segmentors nor detectors are not drawn.

    Raises:
        UserError: there is no validation set, or its images cannot be read.
    """
    dataset = validation_set(cfg)
    for model in models.values():
        complete(model, cfg)

    first = next(iter(models.values()))
    drawn = is_segmentor(first) or is_detector(first)
    compare = _compare_masks if is_segmentor(first) else _compare_boxes
    colours = colours_of(dataset)

    comparisons, inputs = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)):
        sample = read_sample(dataset, int(index))
        batch = first.data_preprocessor(pseudo_collate([sample]), False)
        inputs.append(batch['inputs'])
        if drawn:
            predictions = {name: predict(model, sample) for name, model in models.items()}
            difference = compare(*predictions.values())
            comparisons.append(picture_row(sample, predictions, difference, colours, 'where they differ'))

    legend = legend_of(dataset, is_segmentor(first)) if drawn else []
    return SideBySide(comparisons, legend, inputs, len(dataset))


def _compare_masks(first: BaseDataElement, second: BaseDataElement) -> Difference:
    different = (first.pred_sem_seg.data[0] != second.pred_sem_seg.data[0]).cpu().numpy()
    count, total = int(different.sum()), different.size
    return Difference(count, total, f'{count:,} of {total:,} pixels differ', mark_pixels(different))


def _compare_boxes(first: BaseDataElement, second: BaseDataElement) -> Difference:
    """Boxes without one of the same class in the other prediction whose edges are all within SHIFT, of all of both."""
    ours, others = instances_of(first, 'pred'), instances_of(second, 'pred')
    our_boxes, other_boxes = boxes_of(ours), boxes_of(others)

    shift = (our_boxes[:, None] - other_boxes).abs().amax(-1)                    # boxes of one, of the other
    same_class = ours.labels[:, None] == others.labels
    shift = shift.where(same_class, torch.inf)
    nearest = _nearest(shift, 1, our_boxes)
    alone = torch.cat([our_boxes[nearest > SHIFT], other_boxes[_nearest(shift, 0, other_boxes) > SHIFT]])

    total = len(our_boxes) + len(other_boxes)
    words = f'{len(alone)} of {total} boxes without a counterpart in the other prediction'
    paired = nearest <= SHIFT
    if paired.any():
        partners = shift.argmin(1)[paired]
        scores = (ours.scores[paired] - others.scores[partners]).abs()
        shifted = max(nearest[paired].max(), LEAST)
        changed = max(100 * scores.max(), LEAST)
        words += f', edges within {shifted:.2f} pixels, scores within {changed:.2f} percent points'
    return Difference(len(alone), total, words, mark_boxes(alone))


def _nearest(shift: Tensor, axis: int, boxes: Tensor) -> Tensor:
    """The least shift of each of `boxes`; infinite where there is nothing on the other side."""
    if not shift.numel():
        return torch.full((len(boxes),), torch.inf)
    return shift.amin(axis)
