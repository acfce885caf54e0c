"""How right a model is on its validation set: which classes it takes for which, and the images with most mistakes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..convert.measure import RoundProgress
from ..errors import UserError
from ..openmmlab.data import validation_set
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

MATCH = 0.5  # intersection over union from which a box is that of an object
NOTHING = 'nothing'  # what a missed object is taken for, and what stands where a box is too many
SECONDS = 60.0  # for all images: a large network on a CPU sees a part of them
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Mistakes:
    """What was found on `images` of the `available` images of a validation set.

    counts[i, j]: pixels or objects of class i that were taken for class j. Of boxes the last row and column are
        `NOTHING`: boxes too many, and objects without a box.
    classes: the names of rows and columns.
    worst: the images with the largest share of mistakes, the largest first.
    """

    counts: np.ndarray
    classes: list[str]
    boxes: bool
    images: int
    available: int
    worst: list[ImageComparison]
    legend: list[tuple[str, str]]

    @property
    def found(self) -> np.ndarray:
        """The share of each class that was taken for what it is; nan of a class that is not there."""
        return _shares(self.counts.diagonal(), self.counts.sum(1))

    @property
    def right(self) -> np.ndarray:
        """The share of what was taken for each class that is it; nan of a class that was never predicted."""
        return _shares(self.counts.diagonal(), self.counts.sum(0))

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class."""
        same = self.counts.diagonal()
        return _shares(same, self.counts.sum(0) + self.counts.sum(1) - same)


@torch.no_grad()
def find_mistakes(
    cfg: Config,
    model: nn.Module,
    *,
    worst: int = 3,
    seconds: float = SECONDS,
    progress: Progress = lambda step: None,
) -> Mistakes:
    """Predict images of the validation set, in an order drawn at random, and count what each class was taken for.

    Args:
        model: a segmentor, a detector or an `EngineModel`, in eval mode; of a detector boxes are counted whose score
            is `pictures.SCORE` or more.
        worst: images to be drawn.
        seconds: after which no other image begins.

    Raises:
        UserError: there is no validation set, an image cannot be read, or there are no annotations to compare with.
    """
    dataset = validation_set(cfg)
    complete(model, cfg)
    classes = list(dataset.metainfo.get('classes') or ())
    _check_order(cfg)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()

    total, shares = 0, {}
    begin = time.perf_counter()
    tell = RoundProgress(len(dataset), progress, 'Looked for mistakes on {done} of {rounds} images')
    for index in order:
        if shares and time.perf_counter() - begin > seconds:
            break
        counts, difference, _ = _look(read_sample(dataset, index), model, len(classes))
        total = total + counts
        shares[index] = difference.count / max(difference.total, 1)
        tell(len(shares))

    rows, colours = [], colours_of(dataset)
    for index in sorted(shares, key=lambda index: -shares[index])[:worst]:
        sample = read_sample(dataset, index)
        _, difference, prediction = _look(sample, model, len(classes))
        rows.append(picture_row(sample, {'prediction': prediction}, difference, colours, 'mistakes'))

    boxes = 'pred_instances' in prediction
    names = [*classes, NOTHING] if boxes else classes
    return Mistakes(total, names, boxes, len(shares), len(dataset), rows, legend_of(dataset, not boxes))


def count_pixels(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) pixels by what they are and what they were taken for; those without a label do not count."""
    labelled = truth < classes
    pairs = truth[labelled].astype(np.int64) * classes + predicted[labelled]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def match_boxes(
    truth: Tensor, labels: Tensor, predicted: Tensor, predicted_labels: Tensor
) -> list[tuple[int, int]]:
    """Pairs of an object (boxes (N, 4), labels (N,)) and its box ((M, 4), (M,)): those of one class first, of these
    the greatest overlap first.

    Each has one partner at most, whose intersection over union with it is `MATCH` or more.
    """
    from mmdet.structures.bbox import bbox_overlaps
    overlaps = bbox_overlaps(truth, predicted)
    same_class = labels[:, None] == predicted_labels

    pairs = []
    for allowed in (same_class, torch.ones_like(same_class)):
        left = overlaps.where(allowed, -torch.ones_like(overlaps))
        while left.numel() and left.max() >= MATCH:
            i, j = divmod(int(left.argmax()), left.shape[1])
            pairs.append((i, j))
            for table in (left, overlaps):
                table[i] = table[:, j] = -1
    return pairs


def _check_order(cfg: Config) -> None:
    """UserError if boxes of the truth are resized with the image: predictions have the size of the original."""
    steps = [str(step.get('type')) for step in cfg.val_dataloader.dataset.get('pipeline') or ()]
    resizes = [place for place, step in enumerate(steps) if 'Resize' in step]
    if 'LoadAnnotations' in steps and resizes and steps.index('LoadAnnotations') < resizes[-1]:
        raise UserError(
            'Predictions have the size of the original image, and the validation pipeline resizes annotations: '
            f'{", ".join(steps)}. Put LoadAnnotations after Resize.')


def _look(sample: dict, model: nn.Module, classes: int) -> tuple[np.ndarray, Difference, BaseDataElement]:
    """The counts of one image, its mistakes, and the prediction."""
    prediction, truth = predict(model, sample), sample['data_samples']
    masks = 'pred_sem_seg' in prediction
    annotated = 'gt_sem_seg' in truth if masks else 'bboxes' in truth.get('gt_instances', ())
    if not annotated:
        raise UserError(
            'Mistakes are counted beside annotations, and the validation pipeline loads none. Add LoadAnnotations to '
            'it.')
    look = _pixels if masks else _boxes
    return *look(truth, prediction, classes), prediction


def _pixels(truth: BaseDataElement, prediction: BaseDataElement, classes: int) -> tuple[np.ndarray, Difference]:
    labels, predicted = (part.data[0].cpu().numpy() for part in (truth.gt_sem_seg, prediction.pred_sem_seg))
    if labels.shape != predicted.shape or predicted.max() >= classes:
        raise UserError(
            f'Labels and predictions have one size and the {classes} classes of the data set, got {labels.shape} and '
            f'{predicted.shape}, with classes up to {predicted.max()}. Name every class in metainfo, and leave the '
            'size of labels alone.')

    counts = count_pixels(labels, predicted, classes)
    wrong = (labels < classes) & (labels != predicted)
    count, total = int(wrong.sum()), int(counts.sum())
    words = f'{100 * count / max(total, 1):.1f} % of its {total:,} labelled pixels are taken for another class'
    return counts, Difference(count, total, words, mark_pixels(wrong))


def _boxes(truth: BaseDataElement, prediction: BaseDataElement, classes: int) -> tuple[np.ndarray, Difference]:
    objects, found = instances_of(truth, 'gt'), instances_of(prediction, 'pred')
    object_boxes, found_boxes = boxes_of(objects), boxes_of(found)
    highest = max([-1, *objects.labels.tolist(), *found.labels.tolist()])
    if highest >= classes:
        raise UserError(
            f'Objects and boxes have the {classes} classes of the data set, and one has class {highest}. Name every '
            'class in metainfo.')
    missed, too_many = set(range(len(object_boxes))), set(range(len(found_boxes)))

    counts = np.zeros((classes + 1, classes + 1), np.int64)
    wrong = []
    for i, j in match_boxes(object_boxes, objects.labels, found_boxes, found.labels):
        missed.remove(i)
        too_many.remove(j)
        counts[objects.labels[i], found.labels[j]] += 1
        if objects.labels[i] != found.labels[j]:
            wrong.append(found_boxes[j])
    for i in missed:
        counts[objects.labels[i], classes] += 1
    for j in too_many:
        counts[classes, found.labels[j]] += 1

    taken = len(wrong)
    wrong += [object_boxes[i] for i in missed] + [found_boxes[j] for j in too_many]
    words = (
        f'of {len(object_boxes)} objects {len(missed)} are missed and {taken} taken for another class, '
        f'{len(too_many)} boxes are too many')
    return counts, Difference(len(wrong), int(counts.sum()), words, mark_boxes(wrong))


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid='ignore'):
        return np.asarray(part / whole)
