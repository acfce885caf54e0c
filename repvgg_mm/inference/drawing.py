"""Pictures of predictions: class colours with a legend for segmentors, boxes and masks for detectors."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cached_property
from math import ceil

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement

from ..errors import UserError

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

    def __init__(self, classes: Sequence[str], palette: Sequence | None, *, score_thr: float = 0.3,
                 same_size: bool = False) -> None:
        self.classes = list(classes)
        self.palette = [tuple(map(int, colour)) for colour in palette or []]
        self.palette += [_made_up(number) for number in range(len(self.palette), len(self.classes))]
        self.score_thr, self.same_size = score_thr, same_size

    def __call__(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Raises UserError if the sample holds neither a label map nor detections."""
        image, sample = image.clip(0, 255).astype(np.uint8)[..., ::-1], sample.cpu()
        if 'pred_sem_seg' in sample and 'data' in sample.pred_sem_seg:
            return self._label_map(image, sample.pred_sem_seg.data[0].numpy())
        if 'pred_instances' in sample or 'pred_panoptic_seg' in sample:
            return self._detections(image, sample)
        raise UserError('Pictures are drawn of label maps and detections, and this model predicts '
                        f'{", ".join(sample.keys()) or "nothing"}. Give a segmentor or a detector.')

    def _label_map(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        zoom = self._zoom(image)
        image, labels = _enlarged(image, zoom), _enlarged(labels, zoom)
        colours = np.zeros((256 if labels.max(initial=0) < 256 else labels.max() + 1, 3), np.uint8)
        colours[:len(self.palette)] = self.palette[:len(colours)]
        overlay = cv2.addWeighted(image, 1 - OPACITY, colours[labels], OPACITY, 0)
        present, counts = np.unique(labels, return_counts=True)
        rows = [(self.classes[label], self.palette[label], count / labels.size)
                for label, count in zip(present, counts) if label < len(self.classes)]
        return self._legend_inside(overlay, rows) if self.same_size else _legend_beside(overlay, rows)

    def _legend_inside(self, picture: np.ndarray, rows: list[tuple]) -> np.ndarray:
        """With a translucent legend in the corner, or without one where it would cover half of the picture."""
        panel = legend(rows, picture.shape[0], max(11, picture.shape[0] // 34))
        height, width = panel.shape[:2]
        if height <= picture.shape[0] and 2 * width <= picture.shape[1]:
            corner = picture[:height, :width]
            corner[:] = cv2.addWeighted(corner, 0.25, panel, 0.75, 0)
        return picture

    def _detections(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        zoom = 1 if 'pred_panoptic_seg' in sample else self._zoom(image)
        if zoom > 1:
            image = _enlarged(image, zoom)
            sample.pred_instances.bboxes = sample.pred_instances.bboxes * zoom
            if 'masks' in sample.pred_instances:
                masks = torch.as_tensor(sample.pred_instances.masks)
                sample.pred_instances.masks = masks.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        self._visualizer.line_width = max(1.5, min(image.shape[:2]) / 240)
        self._visualizer.add_datasample('', np.ascontiguousarray(image), sample, draw_gt=False,
                                        pred_score_thr=self.score_thr)
        return self._visualizer.get_image()

    @cached_property
    def _visualizer(self):
        from mmdet.visualization import DetLocalVisualizer
        visualizer = DetLocalVisualizer()
        visualizer.dataset_meta = dict(classes=self.classes, palette=self.palette)
        return visualizer

    def _zoom(self, image: np.ndarray) -> int:
        return 1 if self.same_size else max(1, READABLE // max(image.shape[:2]))


def legend(rows: Sequence[tuple[str, tuple[int, int, int], float]], height: int, size: int) -> np.ndarray:
    """A white panel with name, colour and share of each class, in columns that fit `height`; text of `size` pixels."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont
    font = ImageFont.truetype(findfont('DejaVu Sans'), size)
    line, gap = round(1.7 * size), size // 2
    lines = max(1, min(len(rows), (height - 2 * gap) // line))
    texts = [f'{name}  {share:.0%}' if share >= 0.005 else f'{name}  <1%' for name, _, share in rows]
    column = 3 * gap + size + ceil(max((font.getlength(text) for text in texts), default=0))
    columns = ceil(len(rows) / lines)
    panel = Image.new('RGB', (max(columns, 1) * column + gap, lines * line + 2 * gap), PAPER)
    draw = ImageDraw.Draw(panel)
    for number, (text, (_, colour, _)) in enumerate(zip(texts, rows)):
        x, y = gap + number // lines * column, gap + number % lines * line + line // 2
        draw.rectangle((x, y - size // 2, x + size, y + size // 2), fill=colour, outline=INK)
        draw.text((x + size + gap, y), text, fill=INK, font=font, anchor='lm')
    return np.array(panel)


def _legend_beside(picture: np.ndarray, rows: list[tuple]) -> np.ndarray:
    panel = legend(rows, picture.shape[0], min(28, max(13, picture.shape[0] // 32)))
    height = max(picture.shape[0], panel.shape[0])
    return np.hstack([
        cv2.copyMakeBorder(part, 0, height - part.shape[0], 0, 0, cv2.BORDER_CONSTANT, value=PAPER)
        for part in (picture, panel)])


def _enlarged(image: np.ndarray, zoom: int) -> np.ndarray:
    return image.repeat(zoom, 0).repeat(zoom, 1)


def _made_up(number: int) -> tuple[int, int, int]:
    """Hues a golden section apart, so that neighbours differ."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618 % 1, 0.75, 0.9))
