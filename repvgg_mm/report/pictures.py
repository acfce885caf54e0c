"""An image of a data set as pictures: itself, its truth, what a model predicts there."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
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
from ..openmmlab.data import palette_of

SCORE = 0.5          # boxes below are not drawn
UNLABELLED = 'not labelled'
WIDTH = 2.4          # of a picture, inches, about as a page shows it
DPI = 184
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
BRIGHT = 0.6         # luma of a colour on which text is black
ALARM = '#ff2fd0'    # colour of a difference
ALARM_RGBA = (255, 47, 208, 255)

# axis, and its extent
Mark = Callable[[Axes, Sequence[float]], None]

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


class Difference(NamedTuple):
    """How many pixels or boxes of `total` differ, in words, and a function that marks them on an axis."""

    count: int
    total: int
    words: str
    mark: Mark


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

    instances = instances_of(sample, kind)
    outline = [withStroke(linewidth=3.5, foreground='white')]
    for i, (box, label) in enumerate(zip(boxes_of(instances), instances.labels)):
        x1, y1, _, _ = box.tolist()
        colour = colours[label] / 255
        axis.add_patch(_rectangle(box, edgecolor=colour, linewidth=2, path_effects=outline))
        if kind == 'pred':
            percent = f'{100 * instances.scores[i]:.0f}'
            background = dict(facecolor=colour, edgecolor='none', pad=0.8)
            ink = 'black' if colour @ LUMA > BRIGHT else 'white'
            axis.text(max(x1, 0), max(y1, 0), percent, fontsize=7, color=ink, va='top', bbox=background)


def colours_of(dataset: BaseDataset) -> np.ndarray:
    """RGB of each class (classes, 3) of uint8; made up where the data set has no palette."""
    classes = dataset.metainfo.get('classes') or ()
    colours = palette_of(classes, dataset.metainfo.get('palette'))
    return np.array(colours, dtype=np.uint8).reshape(-1, 3)


def legend_of(dataset: BaseDataset, masks: bool) -> list[tuple[str, str]]:
    """Each class and its CSS colour; with masks that of pixels without a label, too."""
    legend = []
    for name, (red, green, blue) in zip(dataset.metainfo.get('classes') or (), colours_of(dataset).tolist()):
        legend.append((name, f'rgb({red}, {green}, {blue})'))
    if legend and masks:
        legend.append((UNLABELLED, 'black'))
    return legend


def read_sample(dataset: BaseDataset, index: int) -> dict:
    try:
        return dataset[index]
    except Exception as error:  # a data set is a program, and what a damaged one raises is up to it
        raise UserError(
            f'Image {index} of the validation set cannot be read ({first_line(error)}). Check its files.') from None


def predict(model: nn.Module, sample: dict) -> BaseDataElement:
    with branch_by_branch(model):
        return model.test_step(pseudo_collate([sample]))[0]


def complete(model: nn.Module, cfg: Config) -> None:
    """Give a model whose config names the data preprocessor beside it that one, as a Runner does."""
    if isinstance(model, EngineModel):
        return  # it has the one that goes with its engine
    inside = any(part.get('data_preprocessor') for part in config_dicts(cfg.model))
    if cfg.get('data_preprocessor') and not inside:
        model.data_preprocessor = MODELS.build(cfg.data_preprocessor)


def picture_row(
    sample: dict, predictions: dict[str, BaseDataElement], difference: Difference, colours: np.ndarray, title: str
) -> ImageComparison:
    """The pictures of one image: itself, the truth, every prediction, and under `title` where `difference` is."""
    image, truth = _photograph(sample['inputs']), sample['data_samples']
    masks = 'pred_sem_seg' in next(iter(predictions.values()))
    draw, annotation = (draw_mask, 'gt_sem_seg') if masks else (draw_boxes, 'gt_instances')
    if not masks:
        image = _original_size(image, truth)  # that of the predicted boxes

    pictures = [_picture('image', lambda axis: axis.imshow(image), image)]
    if annotation in truth:
        show = partial(draw, image=image, sample=truth, kind='gt', colours=colours)
        pictures.append(_picture('ground truth', show, image, masks))
    for name, prediction in predictions.items():
        show = partial(draw, image=image, sample=prediction, kind='pred', colours=colours)
        pictures.append(_picture(name, show, image, masks))

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

    pictures.append(_picture(title, draw_difference, image))
    name = Path(truth.get('img_path', '')).name
    return ImageComparison(name, pictures, difference.count, difference.total, difference.words)


def mark_pixels(different: np.ndarray) -> Mark:
    """Of a mask (H, W)."""
    def mark(axis: Axes, extent: Sequence[float]) -> None:
        wider = cv2.dilate(different.astype(np.uint8), np.ones((3, 3)))  # a single pixel would not be seen
        rgba = np.zeros((*different.shape, 4), np.uint8)
        rgba[wider > 0] = ALARM_RGBA
        axis.imshow(rgba, extent=extent)

    return mark


def mark_boxes(boxes: Tensor) -> Mark:
    """Of boxes (N, 4)."""
    def mark(axis: Axes, extent: Sequence[float]) -> None:
        for box in boxes:
            axis.add_patch(_rectangle(box, edgecolor=ALARM, linewidth=2.5))

    return mark


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


def _photograph(inputs: Tensor) -> np.ndarray:
    """BGR (C, H, W) to RGB (H, W, 3); of other than three channels the first one in grey."""
    order = [2, 1, 0] if len(inputs) == 3 else [0, 0, 0]
    rgb = inputs.numpy()[order].transpose(1, 2, 0)
    return rgb.clip(0, 255).astype(np.uint8)


def _original_size(image: np.ndarray, truth: BaseDataElement) -> np.ndarray:
    height, width = truth.get('ori_shape', image.shape[:2])[:2]
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)


def instances_of(sample: BaseDataElement, kind: str) -> BaseDataElement:
    instances = sample.get(f'{kind}_instances').cpu()
    if kind == 'pred':
        return instances[instances.scores >= SCORE]
    return instances


def boxes_of(instances: BaseDataElement) -> Tensor:
    from mmdet.structures.bbox import get_box_tensor
    return get_box_tensor(instances.bboxes)
