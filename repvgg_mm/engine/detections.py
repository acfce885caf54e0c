"""From a detector engine's outputs to detections: mmdet's post-processing in numpy, or what is left of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .description import Description

NUMBERS = ('score_thr', 'nms_pre', 'max_per_img', 'min_bbox_size')  # in a test_cfg
NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


class Detections(NamedTuple):
    """Of one image, best first: boxes (n, 4) as x1 y1 x2 y2 in pixels, scores (n,), labels (n,).

    Of instance segmentation also `masks` (n, h, w): probabilities of the label on a grid that covers the box.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


def detect(
    outputs: Mapping[str, np.ndarray],
    description: Description,
    input_shape: Sequence[int],
    image_shape: Sequence[int] | None = None,
    scale_factor: Sequence[float] = (1, 1),
) -> list[Detections]:
    """Detections of each image, as mmdet's one-stage detectors compute them from the same boxes and scores.

    On each level the `nms_pre` best pairs of prior and class above `score_thr` are kept; their boxes are
    clipped to the image, divided by `scale_factor` and, class by class, suppressed where they overlap a
    better one by more than the IoU threshold.

    An engine with suppression inside has done so in pixels of its input: its detections are clipped to the image and
    divided by `scale_factor`, and its empty rows dropped.

    Args:
        outputs: of an `Engine`: `boxes` (N, P, 4), `scores` (N, P, classes), perhaps `score_factors` (N, P); with
            suppression inside `boxes` (N, K, 4), `scores` (N, K), `labels` (N, K), perhaps `masks` (N, K, h, w).
        description: the engine's, with the config's `test_cfg` and the levels of priors.
        input_shape: height and width of what the engine was fed.
        image_shape: height and width of the images in it without padding; `input_shape` by default.
        scale_factor: by which width and height of the original image were multiplied.

    Raises:
        UserError: the settings ask for something other than plain NMS, or the outputs are of another input.
    """
    outputs = in_float32(outputs)
    borders = None if description.clipped is False else image_shape or input_shape
    if description.nms == 'inside':
        return _detected_inside(outputs, description, borders, scale_factor)

    settings = description.test_cfg
    if settings is None or description.levels is None:
        raise UserError(
            f'Boxes are chosen by the levels and the test_cfg of a detector, and this description of '
            f'{description.task} has none. Give the one that was written with the engine.')
    check_settings(settings)
    sizes = level_sizes(description, input_shape)
    starts = np.cumsum([0, *sizes])
    priors = outputs['scores'].shape[1]
    if starts[-1] != priors:
        raise UserError(
            f'An input of {tuple(input_shape)} has {starts[-1]} priors on the levels {description.levels}, and the '
            f"outputs have {priors}. Give the height and width of what the engine was fed, and that engine's own "
            'description.')

    factors = outputs.get('score_factors')
    found = []
    for i, (boxes, scores) in enumerate(zip(outputs['boxes'], outputs['scores'])):
        priors, labels = _best(scores, starts, settings.get('score_thr', 0), settings.get('nms_pre', -1))
        confidence = scores[priors, labels]
        if factors is not None:
            confidence = confidence * factors[i, priors]

        candidates = _rescale(boxes[priors], borders, scale_factor)
        large = _large_enough(candidates, settings.get('min_bbox_size', -1))
        candidates, confidence, labels = candidates[large], confidence[large], labels[large]

        chosen = _suppress(candidates, confidence, labels, settings['nms'])
        chosen = chosen[:settings.get('max_per_img')]
        found.append(Detections(candidates[chosen], confidence[chosen], labels[chosen]))
    return found


def level_sizes(description: Description, input_shape: Sequence[int]) -> list[int]:
    """Priors of each level for an input of (height, width); `levels` holds strides and priors a position."""
    padding = description.preprocessing
    divisor = padding.pad_divisor if padding.inside else 1
    height, width = (_parts(size, divisor) * divisor for size in input_shape)

    sizes = []
    for rows, columns, priors in description.levels:
        sizes.append(_parts(height, rows) * _parts(width, columns) * priors)
    return sizes


def check_settings(settings: Mapping) -> None:
    """Raise UserError if a detector's `test_cfg` asks for another suppression than `detect` does."""
    nms = settings.get('nms') or {}
    if nms.get('type', 'nms') != 'nms' or set(nms) - NMS_KEYS or 'iou_threshold' not in nms:
        raise UserError(
            f'Boxes are suppressed by plain NMS, and this test_cfg has nms={dict(nms)}. Set '
            "model.test_cfg.nms to dict(type='nms', iou_threshold=...).")

    values = {key: settings[key] for key in NUMBERS if key in settings} | {'iou_threshold': nms['iou_threshold']}
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f'{key} is a number, and this test_cfg has {key}={value!r}. Set it to one.')


def in_float32(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of an engine, those in float16 as float32."""
    found = {}
    for name, values in outputs.items():
        found[name] = values.astype(np.float32) if values.dtype == np.float16 else values
    return found


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes that no better kept box overlaps by an IoU above `threshold`, best first."""
    order = np.argsort(-scores, kind='stable')
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)

        lower = np.maximum(boxes[best, :2], boxes[order, :2])
        upper = np.minimum(boxes[best, 2:], boxes[order, 2:])
        overlap = np.prod(np.maximum(upper - lower, 0), axis=1)
        union = areas[best] + areas[order] - overlap
        order = order[~(overlap > threshold * union)]
    return np.array(kept, dtype=np.int64)


def _detected_inside(
    outputs: Mapping[str, np.ndarray],
    description: Description,
    borders: Sequence[int] | None,
    scale_factor: Sequence[float],
) -> list[Detections]:
    least = (description.test_cfg or {}).get('min_bbox_size', -1)
    detections = []
    for i, labels in enumerate(outputs['labels']):
        boxes = _rescale(outputs['boxes'][i], borders, scale_factor)
        found = (labels >= 0) & _large_enough(boxes, least)  # a box may lie in what was padded outside the engine
        masks = outputs['masks'][i][found] if 'masks' in outputs else None
        detections.append(Detections(boxes[found], outputs['scores'][i][found], labels[found], masks))
    return detections


def _parts(size: int, stride: int) -> int:
    """Strides begun on a side."""
    return -(-size // stride)


def _best(scores: np.ndarray, starts: np.ndarray, threshold: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Priors and classes of the best `limit` scores above `threshold` of each level, all of them if it is negative."""
    priors, labels = [], []
    for start, end in pairwise(starts):
        level = scores[start:end]
        rows, columns = np.nonzero(level > threshold)

        order = np.argsort(-level[rows, columns], kind='stable')
        if limit >= 0:
            order = order[:limit]
        priors.append(rows[order] + start)
        labels.append(columns[order])
    return np.concatenate(priors), np.concatenate(labels)


def _rescale(boxes: np.ndarray, borders: Sequence[int] | None, scale_factor: Sequence[float]) -> np.ndarray:
    """Boxes clipped to an image of (height, width), if there are `borders`, in pixels of the original image."""
    if borders is not None:
        height, width = borders
        boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
    return boxes * (1 / np.float32([*scale_factor, *scale_factor]))


def _large_enough(boxes: np.ndarray, least: float) -> np.ndarray:
    """Which boxes are larger than `least` on both sides, all of them if it is negative."""
    if least < 0:
        return np.ones(len(boxes), bool)
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > least).all(1)


def _suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, settings: Mapping) -> np.ndarray:
    """Indices of what `nms` keeps, of each class or of all together, best first."""
    threshold = settings['iou_threshold']
    if settings.get('class_agnostic'):
        return nms(boxes, scores, threshold)

    kept = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        kept.append(members[nms(boxes[members], scores[members], threshold)])

    kept = np.concatenate(kept)
    return kept[np.argsort(-scores[kept], kind='stable')]
