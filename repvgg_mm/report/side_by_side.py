"""What models predict on images of a config's validation set, drawn beside the truth, and where they differ."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..block import branch_by_branch
from ..engine.model import EngineModel
from ..errors import UserError, first_line
from ..openmmlab.config import config_dicts
from ..openmmlab.data import palette_of, validation_set
from ..openmmlab.model import is_detector, is_segmentor

SCORE = 0.5          # boxes below are not drawn
SHIFT = 1.0          # pixels by which two boxes may differ and count as the same
UNLABELLED = 'not labelled'
LEAST = 0.01         # pixels and percent points: less is not told apart
WIDTH = 2.4          # of a picture, inches, about as a page shows it
DPI = 184
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
BRIGHT = 0.6         # luma of a colour on which text is black
ALARM = '#ff2fd0'    # colour of a difference
ALARM_RGBA = (255, 47, 208, 255)

# axis, image (H, W, 3), the sample, 'gt' or 'pred', a colour (3,) of uint8 a class
Draw = Callable[[Axes, np.ndarray, BaseDataElement, str, np.ndarray], None]


class Picture(NamedTuple):
    title: str
    mime: str
    data: bytes


class ImageComparison(NamedTuple):
    """An image of the data set with its pictures; `differing` is the number of differing pixels or boxes of `total`."""

    name: str
    pictures: list[Picture]
    differing: int
    total: int
    words: str


class SideBySide(NamedTuple):
    comparisons: list[ImageComparison]
    legend: list[tuple[str, str]]  # class and CSS colour
    inputs: list[Tensor]           # what the models took, (1, C, H, W) each
    available: int                 # images in the validation set


def draw_mask(axis: Axes, image: np.ndarray, sample: BaseDataElement, kind: str, colours: np.ndarray) -> None:
    """Labels without a colour, such as 255 of pixels that are not labelled, are black."""
    labels = sample.get(f'{kind}_sem_seg').data[0].cpu().numpy()
    missing = max(256 - len(colours), 0)
    table = np.pad(colours, ((0, missing), (0, 0)))
    axis.imshow(table[labels])


def draw_boxes(axis: Axes, image: np.ndarray, sample: BaseDataElement, kind: str, colours: np.ndarray) -> None:
    """Predicted boxes with their score in percent."""
    height, width = image.shape[:2]
    axis.imshow(image, extent=(0, width, height, 0))  # boxes count from the edge of the first pixel

    instances = _instances(sample, kind)
    outline = [withStroke(linewidth=3.5, foreground='white')]
    for i, (box, label) in enumerate(zip(_boxes(instances), instances.labels)):
        x1, y1, _, _ = box.tolist()
        colour = colours[label] / 255
        axis.add_patch(_rectangle(box, edgecolor=colour, linewidth=2, path_effects=outline))
        if kind == 'pred':
            percent = f'{100 * instances.scores[i]:.0f}'
            background = dict(facecolor=colour, edgecolor='none', pad=0.8)
            ink = 'black' if colour @ LUMA > BRIGHT else 'white'
            axis.text(max(x1, 0), max(y1, 0), percent, fontsize=7, color=ink, va='top', bbox=background)


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
        _complete(model, cfg)

    first = next(iter(models.values()))
    drawn = is_segmentor(first) or is_detector(first)
    colours = colours_of(dataset)

    comparisons, inputs = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)):
        sample = _read(dataset, int(index))
        batch = first.data_preprocessor(pseudo_collate([sample]), False)
        inputs.append(batch['inputs'])
        if drawn:
            predictions = {name: _predict(model, sample) for name, model in models.items()}
            comparisons.append(_comparison(sample, predictions, is_segmentor(first), colours))

    legend = _legend(dataset, colours) if drawn else []
    if legend and is_segmentor(first):
        legend.append((UNLABELLED, 'black'))
    return SideBySide(comparisons, legend, inputs, len(dataset))


def colours_of(dataset: BaseDataset) -> np.ndarray:
    """RGB of each class (classes, 3) of uint8; made up where the data set has no palette."""
    classes = dataset.metainfo.get('classes') or ()
    colours = palette_of(classes, dataset.metainfo.get('palette'))
    return np.array(colours, dtype=np.uint8).reshape(-1, 3)


def _legend(dataset: BaseDataset, colours: np.ndarray) -> list[tuple[str, str]]:
    legend = []
    for name, (red, green, blue) in zip(dataset.metainfo.get('classes') or (), colours.tolist()):
        legend.append((name, f'rgb({red}, {green}, {blue})'))
    return legend


def _read(dataset: BaseDataset, index: int) -> dict:
    try:
        return dataset[index]
    except Exception as error:  # a data set is a program, and what a damaged one raises is up to it
        raise UserError(
            f'Image {index} of the validation set cannot be read ({first_line(error)}). Check its files.') from None


def _predict(model: nn.Module, sample: dict) -> BaseDataElement:
    with branch_by_branch(model):
        return model.test_step(pseudo_collate([sample]))[0]


def _comparison(
    sample: dict, predictions: dict[str, BaseDataElement], masks: bool, colours: np.ndarray
) -> ImageComparison:
    """The pictures of one image: itself, the truth, every prediction, and where the predictions differ."""
    image, truth = _photograph(sample['inputs']), sample['data_samples']
    if masks:
        draw, compare, annotation = draw_mask, _compare_masks, 'gt_sem_seg'
    else:
        draw, compare, annotation = draw_boxes, _compare_boxes, 'gt_instances'
        image = _original_size(image, truth)  # that of the predicted boxes

    pictures = [_picture('image', lambda axis: axis.imshow(image), image)]
    if annotation in truth:
        show = partial(draw, image=image, sample=truth, kind='gt', colours=colours)
        pictures.append(_picture('ground truth', show, image, masks))
    for title, prediction in predictions.items():
        show = partial(draw, image=image, sample=prediction, kind='pred', colours=colours)
        pictures.append(_picture(title, show, image, masks))

    difference = compare(*predictions.values())

    def draw_difference(axis: Axes) -> None:
        height, width = image.shape[:2]
        extent = (0, width, height, 0)
        grey = image.mean(2, keepdims=True).repeat(3, 2) * 0.45 + 80
        axis.imshow(grey.astype(np.uint8), extent=extent)
        difference.mark(axis, extent)
        if not difference.count:
            axis.text(
                0.5, 0.5, 'no difference', transform=axis.transAxes, ha='center', va='center', color='white',
                bbox=dict(facecolor='black', edgecolor='none', alpha=0.7))

    pictures.append(_picture('where they differ', draw_difference, image))
    name = Path(truth.get('img_path', '')).name
    return ImageComparison(name, pictures, difference.count, difference.total, difference.words)


class Difference(NamedTuple):
    """How many pixels or boxes of `total` differ, in words, and a function that marks them on an axis."""

    count: int
    total: int
    words: str
    mark: Callable[[Axes, Sequence[float]], None]


def _compare_masks(first: BaseDataElement, second: BaseDataElement) -> Difference:
    different = (first.pred_sem_seg.data[0] != second.pred_sem_seg.data[0]).cpu().numpy()
    count, total = int(different.sum()), different.size

    def mark(axis: Axes, extent: Sequence[float]) -> None:
        wider = cv2.dilate(different.astype(np.uint8), np.ones((3, 3)))  # a single pixel would not be seen
        rgba = np.zeros((*different.shape, 4), np.uint8)
        rgba[wider > 0] = ALARM_RGBA
        axis.imshow(rgba, extent=extent)

    return Difference(count, total, f'{count:,} of {total:,} pixels differ', mark)


def _compare_boxes(first: BaseDataElement, second: BaseDataElement) -> Difference:
    """Boxes without one of the same class in the other prediction whose edges are all within SHIFT, of all of both."""
    ours, others = _instances(first, 'pred'), _instances(second, 'pred')
    our_boxes, other_boxes = _boxes(ours), _boxes(others)

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

    def mark(axis: Axes, extent: Sequence[float]) -> None:
        for box in alone:
            axis.add_patch(_rectangle(box, edgecolor=ALARM, linewidth=2.5))

    return Difference(len(alone), total, words, mark)


def _nearest(shift: Tensor, axis: int, boxes: Tensor) -> Tensor:
    """The least shift of each of `boxes`; infinite where there is nothing on the other side."""
    if not shift.numel():
        return torch.full((len(boxes),), torch.inf)
    return shift.amin(axis)


def _rectangle(box: Tensor, **options: object) -> Rectangle:
    x1, y1, x2, y2 = box.tolist()
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **options)


def _picture(title: str, draw: Callable[[Axes], object], image: np.ndarray, mask: bool = False) -> Picture:
    """Masks as PNG, photographs as JPEG; the height follows from the image."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(WIDTH, WIDTH * height / width))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis('off')
    draw(axis)
    axis.set_aspect('auto')

    data = io.BytesIO()
    if mask:
        figure.savefig(data, dpi=DPI, format='png')
        return Picture(title, 'image/png', data.getvalue())
    figure.savefig(data, dpi=DPI, format='jpg', pil_kwargs=dict(quality=82))
    return Picture(title, 'image/jpeg', data.getvalue())


def _complete(model: nn.Module, cfg: Config) -> None:
    """Give a model whose config names the data preprocessor beside it that one, as a Runner does."""
    if isinstance(model, EngineModel):
        return  # it has the one that goes with its engine
    inside = any(part.get('data_preprocessor') for part in config_dicts(cfg.model))
    if cfg.get('data_preprocessor') and not inside:
        model.data_preprocessor = MODELS.build(cfg.data_preprocessor)


def _photograph(inputs: Tensor) -> np.ndarray:
    """BGR (C, H, W) to RGB (H, W, 3); of other than three channels the first one in grey."""
    order = [2, 1, 0] if len(inputs) == 3 else [0, 0, 0]
    rgb = inputs.numpy()[order].transpose(1, 2, 0)
    return rgb.clip(0, 255).astype(np.uint8)


def _original_size(image: np.ndarray, truth: BaseDataElement) -> np.ndarray:
    height, width = truth.get('ori_shape', image.shape[:2])[:2]
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)


def _instances(sample: BaseDataElement, kind: str) -> BaseDataElement:
    instances = sample.get(f'{kind}_instances').cpu()
    if kind == 'pred':
        return instances[instances.scores >= SCORE]
    return instances


def _boxes(instances: BaseDataElement) -> Tensor:
    from mmdet.structures.bbox import get_box_tensor
    return get_box_tensor(instances.bboxes)
