"""Pictures: colours of the palette over the image, a legend of the classes present, frames that keep their size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from repvgg_mm import UserError
from repvgg_mm.inference.drawing import OPACITY, LegendRow, Painter, legend, share_text

CLASSES, PALETTE = ['sea', 'sand', 'palm'], [(0, 0, 250), (240, 200, 100), (10, 150, 20)]


def label_map(labels: np.ndarray) -> BaseDataElement:
    return BaseDataElement(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(2).any())


def test_label_map_is_laid_over_the_image_with_a_legend_of_what_is_present():
    labels = np.zeros((400, 500), np.int64)
    labels[:, 250:] = 2
    image = np.full((400, 500, 3), (10, 60, 200), np.uint8)  # BGR
    picture = Painter(CLASSES, PALETTE)(image, label_map(labels))
    for x, colour in ((10, PALETTE[0]), (490, PALETTE[2])):
        expected = np.array([200, 60, 10]) * (1 - OPACITY) + np.array(colour) * OPACITY
        np.testing.assert_allclose(picture[200, x], expected, atol=1)
    panel = picture[:, 500:]
    assert has(panel, PALETTE[0]) and has(panel, PALETTE[2]) and not has(panel, PALETTE[1])
    assert panel.shape[0] == 400 and panel.shape[1] > 60


def test_small_images_are_enlarged_and_frames_are_not():
    labels = np.eye(3, dtype=np.int64).repeat(32, 0).repeat(32, 1)
    image = np.zeros((96, 96, 3), np.uint8)
    picture = Painter(CLASSES, PALETTE)(image, label_map(labels))
    assert picture.shape[0] == 384 and picture.shape[1] > 384
    paint_frame = Painter(CLASSES, PALETTE, same_size=True)
    assert paint_frame(image, label_map(labels)).shape == (96, 96, 3)
    frame = paint_frame(np.zeros((480, 640, 3), np.uint8), label_map(np.ones((480, 640), int)))
    assert frame.shape == (480, 640, 3) and frame[:40, :80].std() > 20  # the legend stands in the corner
    assert frame[240:, 320:].std(axis=(0, 1)).max() == 0


def test_ignored_labels_and_missing_colours():
    labels = np.full((400, 400), 255, np.int64)
    labels[:200] = 1
    picture = Painter(CLASSES, PALETTE[:1])(np.full((400, 400, 3), 100, np.uint8), label_map(labels))
    assert picture[399, 0].tolist() == [45] * 3 and picture[0, 0].tolist() != [45] * 3


def test_legend_of_many_classes_uses_columns():
    rows = [LegendRow(f'class {number}', (number, 0, 0), '1%') for number in range(150)]
    panel = legend(rows, height=400, size=13)
    assert panel.shape[0] <= 400 and all(has(panel, row.colour) for row in rows)


@pytest.mark.parametrize(('share', 'text'), [(1, 'sea  100%'), (0.125, 'sea  12%'), (0.006, 'sea  1%'),
                                             (0.0049, 'sea  <1%')])
def test_the_share_of_a_class_is_told_in_percent(share, text):
    assert LegendRow('sea', (0, 0, 0), share_text(share)).text == text


def test_boxes_have_the_colour_of_their_class_and_pass_the_threshold():
    pytest.importorskip('mmdet')
    instances = InstanceData(bboxes=torch.tensor([[50., 100., 150., 200.], [250., 100., 350., 200.]]),
                             scores=torch.tensor([0.9, 0.2]), labels=torch.tensor([0, 2]))
    sample = BaseDataElement(pred_instances=instances)
    image = np.full((400, 400, 3), 255, np.uint8)
    picture = Painter(CLASSES, PALETTE, score_thr=0.3)(image, sample).astype(int)
    assert abs(picture[160, 148:153] - PALETTE[0]).sum(1).min() < 160  # drawn at an opacity of 0.8
    assert picture[:, 240:400].min() > 250
    assert has(picture[:, 400:], PALETTE[0]) and not has(picture[:, 400:], PALETTE[2])  # the legend
    torch.testing.assert_close(sample.pred_instances.bboxes[0], torch.tensor([50., 100., 150., 200.]))


def test_other_predictions_are_refused():
    with pytest.raises(UserError, match='this model predicts pred_label'):
        Painter(CLASSES, PALETTE)(np.zeros((8, 8, 3), np.uint8), BaseDataElement(pred_label=torch.tensor(1)))


def test_labels_of_boxes_have_one_size(monkeypatch):
    """mmdet's own grow with the box."""
    visualization = pytest.importorskip('mmdet.visualization')
    sizes = []
    monkeypatch.setattr(
        visualization.DetLocalVisualizer.__mro__[1], 'draw_texts',
        lambda self, texts, positions, font_sizes=None, **settings: sizes.append(font_sizes) or self)
    boxes = torch.tensor([[10., 10., 20., 20.], [50., 50., 390., 390.]])
    instances = InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.8]), labels=torch.tensor([0, 1]))
    Painter(CLASSES, PALETTE)(np.full((400, 400, 3), 255, np.uint8), BaseDataElement(pred_instances=instances))
    assert len(sizes) == 2 and len(set(sizes)) == 1
