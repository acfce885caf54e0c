"""Pictures of predictions with a legend: class colours for segmentors, boxes and masks for detectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import ceil
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement

from ..errors import UserError
from ..openmmlab.data import palette_of

OPACITY = 0.55         # of class colours
READABLE = 400         # pixels: smaller images are enlarged by a whole number up to about this side
INK, PAPER = (30, 30, 30), (255, 255, 255)


class Painter:
    """Draws BGR images (H, W, 3) of uint8 with their mmseg or mmdet data sample as RGB pictures.

    Args:
        classes: names in the order of the labels.
        palette: RGB of each class; where it is too short, colours are made up.
        score_thr: detections below this score are left out.
        same_size: a picture has the size of its image, as the frames of a video must. By default small
            images are enlarged so that text can be read, and the legend is added on the right.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence | None,
        *,
        score_thr: float = 0.3,
        same_size: bool = False,
    ) -> None:
        self.classes = list(classes)
        self.palette = palette_of(self.classes, palette)
        self.score_thr = score_thr
        self.same_size = same_size

    def __call__(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Raises UserError if the sample holds neither a label map nor detections."""
        image = image.clip(0, 255).astype(np.uint8)[..., ::-1]
        sample = sample.cpu()
        if 'pred_sem_seg' in sample and 'data' in sample.pred_sem_seg:
            labels = sample.pred_sem_seg.data[0].numpy()
            return self._label_map(image, labels)
        if 'pred_instances' in sample or 'pred_panoptic_seg' in sample:
            return self._detections(image, sample)
        raise UserError(
            'Pictures are drawn of label maps and detections, and this model predicts '
            f'{", ".join(sample.keys()) or "nothing"}. Give a segmentor or a detector.')

    def _label_map(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        zoom = self._zoom(image)
        image, labels = _enlarged(image, zoom), _enlarged(labels, zoom)

        count = max(256, labels.max(initial=0) + 1)
        colours = np.zeros((count, 3), np.uint8)
        colours[:len(self.palette)] = self.palette[:count]
        overlay = cv2.addWeighted(image, 1 - OPACITY, colours[labels], OPACITY, 0)

        return self._with_legend(overlay, self._legend_rows(labels))

    def _with_legend(self, picture: np.ndarray, rows: Sequence[LegendRow]) -> np.ndarray:
        if not rows:
            return picture
        return _legend_inside(picture, rows) if self.same_size else _legend_beside(picture, rows)

    def _legend_rows(self, labels: np.ndarray) -> list[LegendRow]:
        """Of the classes that are there."""
        rows = []
        for label, count in zip(*np.unique(labels, return_counts=True)):
            if label < len(self.classes):
                share = share_text(count / labels.size)
                rows.append(LegendRow(self.classes[label], self.palette[label], share))
        return rows

    def _detections(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        zoom = 1 if 'pred_panoptic_seg' in sample else self._zoom(image)
        if zoom > 1:
            image = _enlarged(image, zoom)
            instances = sample.pred_instances
            instances.bboxes = instances.bboxes * zoom
            if 'masks' in instances:
                masks = torch.as_tensor(instances.masks)
                instances.masks = masks.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)

        visualizer = self._visualizer
        visualizer.line_width = max(1.5, min(image.shape[:2]) / 240)
        visualizer.text_size = max(8, min(image.shape[:2]) // 40)
        visualizer.add_datasample(
            '', np.ascontiguousarray(image), sample, draw_gt=False, pred_score_thr=self.score_thr)
        picture = visualizer.get_image()
        if 'pred_instances' not in sample:
            return picture
        return self._with_legend(picture, self._rows_of_instances(sample.pred_instances))

    def _rows_of_instances(self, instances: BaseDataElement) -> list[LegendRow]:
        """Of the classes that are drawn, with their number."""
        drawn = instances.labels[instances.scores > self.score_thr]
        rows = []
        for label, count in zip(*np.unique(drawn.numpy(), return_counts=True)):
            if label < len(self.classes):
                rows.append(LegendRow(self.classes[label], self.palette[label], str(count)))
        return rows

    @cached_property
    def _visualizer(self):
        from mmdet.visualization import DetLocalVisualizer

        class OneTextSize(DetLocalVisualizer):
            """mmdet scales the text of a box by the box's area."""

            text_size = 8

            def draw_texts(self, texts, positions, font_sizes=None, **settings):
                return super().draw_texts(texts, positions, font_sizes=self.text_size, **settings)

        visualizer = OneTextSize()
        visualizer.dataset_meta = dict(classes=self.classes, palette=self.palette)
        return visualizer

    def _zoom(self, image: np.ndarray) -> int:
        if self.same_size:
            return 1
        return max(1, READABLE // max(image.shape[:2]))


class LegendRow(NamedTuple):
    """A class in a picture, and how much of it: its share of the pixels, or the number of its boxes."""

    name: str
    colour: tuple[int, int, int]
    amount: str

    @property
    def text(self) -> str:
        return f'{self.name}  {self.amount}'


def share_text(share: float) -> str:
    """In percent."""
    return f'{share:.0%}' if share >= 0.005 else '<1%'


def legend(rows: Sequence[LegendRow], height: int, size: int) -> np.ndarray:
    """A white panel with name, colour and amount of each class, in columns that fit `height`; text of `size` pixels."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont('DejaVu Sans'), size)
    line, gap = round(1.7 * size), size // 2
    lines = max(1, min(len(rows), (height - 2 * gap) // line))
    widest = max((font.getlength(row.text) for row in rows), default=0)
    column = 3 * gap + size + ceil(widest)
    columns = max(1, ceil(len(rows) / lines))

    panel = Image.new('RGB', (columns * column + gap, lines * line + 2 * gap), PAPER)
    draw = ImageDraw.Draw(panel)
    for number, row in enumerate(rows):
        x = gap + number // lines * column
        y = gap + number % lines * line + line // 2
        square = (x, y - size // 2, x + size, y + size // 2)
        draw.rectangle(square, fill=row.colour, outline=INK)
        draw.text((x + size + gap, y), row.text, fill=INK, font=font, anchor='lm')
    return np.array(panel)


def _legend_inside(picture: np.ndarray, rows: Sequence[LegendRow]) -> np.ndarray:
    """With a translucent legend in the corner, or without one where it would cover half of the picture."""
    size = max(11, picture.shape[0] // 34)
    panel = legend(rows, picture.shape[0], size)
    height, width = panel.shape[:2]
    if height <= picture.shape[0] and 2 * width <= picture.shape[1]:
        corner = picture[:height, :width]
        corner[:] = cv2.addWeighted(corner, 0.25, panel, 0.75, 0)
    return picture


def _legend_beside(picture: np.ndarray, rows: Sequence[LegendRow]) -> np.ndarray:
    size = min(28, max(13, picture.shape[0] // 32))
    panel = legend(rows, picture.shape[0], size)
    height = max(picture.shape[0], panel.shape[0])
    return np.hstack([_padded(picture, height), _padded(panel, height)])


def _padded(picture: np.ndarray, height: int) -> np.ndarray:
    """White below."""
    below = height - picture.shape[0]
    return cv2.copyMakeBorder(picture, 0, below, 0, 0, cv2.BORDER_CONSTANT, value=PAPER)


def _enlarged(image: np.ndarray, zoom: int) -> np.ndarray:
    return image.repeat(zoom, 0).repeat(zoom, 1)
