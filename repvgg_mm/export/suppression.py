"""Non-maximum suppression within an exported graph, with outputs of fixed sizes.

How many boxes are kept depends on the image, and torch's exporter wants sizes that do not. So scores stay where they
are: what is suppressed gets the score 0, which means "no detection" throughout. A network uses it in two steps,

    scores = suppress_by_class(boxes, scores, labels, num_classes, iou_threshold)
    boxes, scores, labels = keep_best(boxes, scores, labels, max_per_img)

or calls `suppress` itself where classes have boxes of their own: they go in as images of one class each. `to_onnx`
writes it as ONNX's NonMaxSuppression by `translations()`. Boxes and scores are float32, as that operator wants them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..engine.detections import nms
from ..engine.engine import optional

NAME = 'repvgg_mm::suppress'
THRESHOLD = 'score_thr'  # a buffer of a network, and under this name an initializer of its graph
SCHEMA = '(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor'


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Scores (N, C, P) of which each box that a better kept one of its class overlaps has become 0.

    Overlap is an IoU above the threshold, not at it, as in mmcv; of equal scores the first box is the better one.
    Classes are apart exactly, where mmcv moves their boxes by offsets, which costs float32 some digits.

    Args:
        boxes: (N, P, 4), x1 y1 x2 y2, of all classes.
        scores: (N, C, P); those of 0 or less are no candidates, and come out as 0.
    """
    return _operator()(boxes, scores, iou_threshold)


def suppress_by_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou_threshold: float
) -> Tensor:
    """`suppress` where each box (N, P, 4) has one score (N, P) and one label (N, P); returns scores (N, P).

    With `num_classes` of 1 labels are not looked at: suppression is class-agnostic.
    """
    if num_classes == 1:
        return suppress(boxes, scores[:, None], iou_threshold)[:, 0]

    classes = torch.arange(num_classes, device=labels.device)
    is_of_class = labels[:, None] == classes[:, None]                    # N, C, P
    by_class = torch.where(is_of_class, scores[:, None], 0.)
    return suppress(boxes, by_class, iou_threshold).amax(1)


def keep_best(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `limit` best of each image: boxes (N, limit, 4), scores (N, limit), labels (N, limit), best first.

    Rows without a detection have boxes and a score of 0 and the label -1.
    """
    boxes = F.pad(boxes, (0, 0, 0, limit))
    scores = F.pad(scores, (0, limit))  # so that there are always `limit` to choose from
    labels = F.pad(labels, (0, limit))

    scores, chosen = scores.topk(limit)
    found = scores > 0
    boxes = rows_at(boxes, chosen) * found[..., None]
    labels = torch.where(found, labels.gather(1, chosen), -1)
    return boxes, scores * found, labels


def rows_at(rows: Tensor, chosen: Tensor) -> Tensor:
    """Of rows (N, P, D) those of the indices (N, K) of each image, (N, K, D)."""
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))


def translations() -> dict[object, Callable]:
    """What `torch.onnx.export` takes as `custom_translation_table`."""
    op = optional('onnxscript').opset18

    def in_onnx(boxes, scores, iou_threshold: float):
        most = op.Shape(boxes, start=1, end=2)
        above = op.Constant(value_float=_next_above(iou_threshold))
        zero = op.Constant(value_float=0.)
        kept = op.NonMaxSuppression(boxes, scores, most, above, zero)   # K, 3: image, class, box
        zeros = op.ConstantOfShape(op.Shape(scores))
        return op.ScatterND(zeros, kept, op.GatherND(scores, kept))

    _operator()
    return {torch.ops.repvgg_mm.suppress.default: in_onnx}


def _next_above(threshold: float) -> float:
    """The next normal number in float32: OpenVINO also suppresses at the threshold, ONNX Runtime above, as mmcv."""
    above = np.nextafter(np.float32(threshold), np.float32(np.inf))
    return max(float(above), float(np.finfo(np.float32).tiny))


@cache
def _operator() -> Callable:
    """Registered when it is used: torch 2.1, which exports nothing, has no `custom_op`."""
    operator = torch.library.custom_op(NAME, _suppress, mutates_args=(), schema=SCHEMA)
    operator.register_fake(lambda boxes, scores, iou_threshold: torch.empty_like(scores))
    return operator


def _suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.zeros_like(scores)
    for image, (places, classes) in enumerate(zip(boxes.cpu().numpy(), scores.cpu().numpy())):
        for label, values in enumerate(classes):
            candidates = np.flatnonzero(values > 0)
            chosen = candidates[nms(places[candidates], values[candidates], iou_threshold)]
            kept[image, label, chosen] = scores[image, label, chosen]
    return kept
