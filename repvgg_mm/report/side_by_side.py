"""What models predict on images of a config's validation set, drawn beside the truth, and where they differ."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..block import branch_by_branch
from ..errors import UserError, first_line
from ..openmmlab.config import config_dicts
from ..openmmlab.data import validation_set

SCORE = 0.5          # boxes below are not drawn
SHIFT = 1.0          # pixels by which two boxes may differ and count as the same
UNLABELLED = 'not labelled'
WIDTH = 3.4          # of a picture, inches at 130 dots
ALARM = '#ff2fd0'    # colour of a difference

# axis, image (H, W, 3), the sample, 'gt' or 'pred', a colour (3,) of uint8 a class
Draw = Callable[[Axes, np.ndarray, BaseDataElement, str, np.ndarray], None]


class Picture(NamedTuple):
    title: str
    mime: str
    data: bytes


class Comparison(NamedTuple):
    """An image of the data set with its pictures; `differing` is the number of differing pixels or boxes of `total`."""

    name: str
    pictures: list[Picture]
    differing: int
    total: int
    words: str


class SideBySide(NamedTuple):
    comparisons: list[Comparison]
    legend: list[tuple[str, str]]  # class and CSS colour
    inputs: list[Tensor]           # what the models took, (1, C, H, W) each


def draw_mask(axis: Axes, image: np.ndarray, sample: BaseDataElement, kind: str, colours: np.ndarray) -> None:
    """Labels without a colour, such as 255 of pixels that are not labelled, are black."""
    labels = sample.get(f'{kind}_sem_seg').data[0].cpu().numpy()
    axis.imshow(np.pad(colours, ((0, max(256 - len(colours), 0)), (0, 0)))[labels])


def draw_boxes(axis: Axes, image: np.ndarray, sample: BaseDataElement, kind: str, colours: np.ndarray) -> None:
    """Predicted boxes with their score in percent."""
    height, width = image.shape[:2]
    axis.imshow(image, extent=(0, width, height, 0))  # boxes count from the edge of the first pixel
    instances = _instances(sample, kind)
    for i, (box, label) in enumerate(zip(_boxes(instances), instances.labels)):
        x1, y1, x2, y2 = box.tolist()
        colour = colours[label] / 255
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2,
                                 path_effects=[withStroke(linewidth=3.5, foreground='white')]))
        if kind == 'pred':
            axis.text(max(x1, 0), max(y1, 0), f'{100 * instances.scores[i]:.0f}', fontsize=7, color='white', va='top',
                      bbox=dict(facecolor=colour, edgecolor='none', pad=0.8))


@torch.no_grad()
def side_by_side(cfg: Config, models: dict[str, nn.Module], count: int = 4) -> SideBySide:
    """Images at even distances of the validation set, with the truth and the predictions of two models in eval mode.

    A training form predicts branch by branch: fused on the fly it would only be compared with itself.

    Models that are neither segmentors nor detectors are not drawn.

    Raises:
        UserError: there is no validation set, or its images cannot be read.
    """
    dataset = validation_set(cfg)
    for model in models.values():
        _complete(model, cfg)
    first = next(iter(models.values()))
    draw, compare = (draw_mask, _compare_masks) if hasattr(first, 'encode_decode') else (draw_boxes, _compare_boxes)
    drawn = hasattr(first, 'encode_decode') or hasattr(first, 'bbox_head') or hasattr(first, 'roi_head')
    comparisons, inputs = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)):
        try:
            sample = dataset[int(index)]
        except Exception as error:  # as above
            raise UserError(f'Image {index} of the validation set cannot be read ({first_line(error)}). Check its '
                            'files.') from None
        inputs.append(first.data_preprocessor(pseudo_collate([sample]), False)['inputs'])
        if drawn:
            predictions = [_predict(model, sample) for model in models.values()]
            comparisons.append(_comparison(sample, dict(zip(models, predictions)), draw, compare, colours_of(dataset)))
    legend = [(name, f'rgb({r}, {g}, {b})') for name, (r, g, b) in
              zip(dataset.metainfo.get('classes') or (), colours_of(dataset).tolist())] if drawn else []
    if draw is draw_mask and legend:
        legend.append((UNLABELLED, 'black'))
    return SideBySide(comparisons, legend, inputs)


def colours_of(dataset: object) -> np.ndarray:
    """RGB of each class (classes, 3) of uint8; made up where the data set has no palette."""
    count = len(dataset.metainfo.get('classes') or ())
    palette = dataset.metainfo.get('palette')
    if palette is not None and len(palette) >= count:
        return np.array(palette, dtype=np.uint8)
    hues = np.arange(count) * 0.618 % 1 * 180
    hsv = np.stack([hues, np.full(count, 190), np.full(count, 230)], 1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if count else np.zeros((0, 3), np.uint8)


def _predict(model: nn.Module, sample: dict) -> BaseDataElement:
    with branch_by_branch(model):
        return model.test_step(pseudo_collate([sample]))[0]


def _comparison(sample: dict, predictions: dict[str, BaseDataElement], draw: Draw, compare: Callable,
                colours: np.ndarray) -> Comparison:
    image = _photograph(sample['inputs'])
    truth = sample['data_samples']
    if draw is draw_boxes:
        image = _original_size(image, truth)  # that of the predicted boxes
    mask = draw is draw_mask
    pictures = [_picture('image', lambda axis: axis.imshow(image), image)]
    if f'gt_{"sem_seg" if mask else "instances"}' in truth:
        pictures.append(_picture('ground truth', lambda axis: draw(axis, image, truth, 'gt', colours), image, mask))
    for title, prediction in predictions.items():
        pictures.append(_picture(
            title, lambda axis, seen=prediction: draw(axis, image, seen, 'pred', colours), image, mask))
    differing, total, words, mark = compare(*predictions.values())

    def draw_difference(axis: Axes) -> None:
        height, width = image.shape[:2]
        grey = image.mean(2, keepdims=True).repeat(3, 2) * 0.45 + 80
        axis.imshow(grey.astype(np.uint8), extent=(0, width, height, 0))
        mark(axis, (0, width, height, 0))

    pictures.append(_picture('where they differ', draw_difference, image))
    return Comparison(Path(truth.get('img_path', '')).name, pictures, differing, total, words)


def _compare_masks(first: BaseDataElement, second: BaseDataElement) -> tuple[int, int, str, Callable]:
    different = (first.pred_sem_seg.data[0] != second.pred_sem_seg.data[0]).cpu().numpy()
    count, total = int(different.sum()), different.size

    def mark(axis: Axes, extent: Sequence[float]) -> None:
        rgba = np.zeros((*different.shape, 4), np.uint8)
        rgba[cv2.dilate(different.astype(np.uint8), np.ones((3, 3))) > 0] = (255, 47, 208, 255)
        axis.imshow(rgba, extent=extent)
    return count, total, f'{count:,} of {total:,} pixels differ', mark


def _compare_boxes(first: BaseDataElement, second: BaseDataElement) -> tuple[int, int, str, Callable]:
    """Boxes without one of the same class in the other prediction whose edges are all within SHIFT."""
    instances = [_instances(sample, 'pred') for sample in (first, second)]
    boxes = [_boxes(part) for part in instances]
    shift = (boxes[0][:, None] - boxes[1]).abs().amax(-1)                        # boxes of one, of the other
    shift = shift.where(instances[0].labels[:, None] == instances[1].labels, torch.inf)
    nearest = [shift.amin(axis) if shift.numel() else torch.full((len(part),), torch.inf)
               for axis, part in zip((1, 0), boxes)]
    alone = torch.cat([part[distance > SHIFT] for part, distance in zip(boxes, nearest)])
    total = max(map(len, boxes))
    words = f'{len(alone)} of {total} boxes without a counterpart'
    paired = nearest[0] <= SHIFT
    if paired.any():
        scores = instances[0].scores[paired] - instances[1].scores[shift.argmin(1)[paired]]
        words += (f', edges within {nearest[0][paired].max():.1g} pixels, '
                  f'scores within {100 * scores.abs().max():.1g} percent points')

    def mark(axis: Axes, extent: Sequence[float]) -> None:
        for x1, y1, x2, y2 in alone.tolist():
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ALARM, linewidth=2.5))
    return len(alone), total, words, mark


def _picture(title: str, draw: Callable[[Axes], object], image: np.ndarray, mask: bool = False) -> Picture:
    """Masks as PNG, photographs as JPEG; the height follows from the image."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(WIDTH, WIDTH * height / width))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis('off')
    draw(axis)
    axis.set_aspect('auto')
    data = io.BytesIO()
    options = dict(format='png') if mask else dict(format='jpg', pil_kwargs=dict(quality=82))
    figure.savefig(data, dpi=130, **options)
    return Picture(title, 'image/png' if mask else 'image/jpeg', data.getvalue())


def _complete(model: nn.Module, cfg: Config) -> None:
    """Give a model whose config names the data preprocessor beside it that one, as a Runner does."""
    inside = any(part.get('data_preprocessor') for part in config_dicts(cfg.model))
    if cfg.get('data_preprocessor') and not inside:
        model.data_preprocessor = MODELS.build(cfg.data_preprocessor)


def _photograph(inputs: Tensor) -> np.ndarray:
    """BGR (C, H, W) to RGB (H, W, 3); of other than three channels the first one in grey."""
    channels = inputs.numpy()[[2, 1, 0] if len(inputs) == 3 else [0, 0, 0]]
    return channels.transpose(1, 2, 0).clip(0, 255).astype(np.uint8)


def _original_size(image: np.ndarray, truth: BaseDataElement) -> np.ndarray:
    height, width = truth.get('ori_shape', image.shape[:2])[:2]
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)


def _instances(sample: BaseDataElement, kind: str) -> BaseDataElement:
    instances = sample.get(f'{kind}_instances').cpu()
    return instances[instances.scores >= SCORE] if kind == 'pred' else instances


def _boxes(instances: BaseDataElement) -> Tensor:
    from mmdet.structures.bbox import get_box_tensor
    return get_box_tensor(instances.bboxes)
