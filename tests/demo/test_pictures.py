"""The pictures of the demo hold what was predicted, logged and measured."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData

from repvgg_mm.convert.measure import Latency
from repvgg_mm.demo.pictures import CURVES, draw_latency, draw_predictions, draw_training
from repvgg_mm.openmmlab.data import validation_set
from repvgg_mm.report.pictures import draw_mask

SEGMENTOR = 'configs/pspnet_repvgg_a0_shapes.py'


@pytest.fixture
def figures(monkeypatch) -> list[plt.Figure]:
    """Those that were drawn and saved."""
    found = []
    monkeypatch.setattr(plt, 'close', found.append)
    yield found
    monkeypatch.undo()
    plt.close('all')


def write_log(work_dir: Path, run: str, entries: list[dict]) -> None:
    path = work_dir / run / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, entries)) + '\n')


class Constant(torch.nn.Module):
    """Predicts the same label everywhere."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def test_step(self, batch: dict) -> list:
        for sample in batch['data_samples']:
            labels = torch.full(sample.gt_sem_seg.data.shape, self.label)
            sample.pred_sem_seg = PixelData(data=labels)
        return batch['data_samples']


@pytest.mark.stack
def test_a_row_an_image_with_the_truth_and_each_prediction(shapes, figures, tmp_path):
    cfg = Config.fromfile(Path(__file__).parents[2] / SEGMENTOR)
    cfg.val_dataloader.dataset.data_root = str(shapes)
    import mmseg.models  # noqa: F401  registers the data sets
    from mmengine.registry import init_default_scope
    init_default_scope('mmseg')
    dataset = validation_set(cfg)
    models = dict(first=Constant(1), second=Constant(3))
    draw_predictions(models, dataset, draw_mask, tmp_path / 'picture.png', count=3)
    assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')

    figure, = figures
    cells = np.array(figure.axes).reshape(3, 4)
    assert [axis.get_title() for axis in cells[0]] == ['image', 'ground truth', 'first', 'second']
    colours = np.array(dataset.metainfo['palette'], np.uint8)
    for row, index in zip(cells, (0, 2, 5)):  # at even distances of six
        image, truth, first, second = (axis.images[0].get_array() for axis in row)
        sample = dataset[index]
        np.testing.assert_array_equal(image, sample['inputs'].numpy()[::-1].transpose(1, 2, 0))
        np.testing.assert_array_equal(truth, colours[sample['data_samples'].gt_sem_seg.data[0]])
        assert (first == colours[1]).all() and (second == colours[3]).all()
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(dataset.metainfo['classes'])


def test_curves_are_those_of_the_newest_run(figures, tmp_path):
    values = {'decode.loss_ce': 0.5, 'aux.loss_ce': 0.25, 'decode.acc_seg': 80}
    write_log(tmp_path / 'segmentor', '20250101_000000', [dict(loss=9, step=1, **dict.fromkeys(values, 9))])
    first, last = dict(loss=2, step=10, **dict.fromkeys(values, 1)), dict(loss=1, step=20, **values)
    write_log(tmp_path / 'segmentor', '20250102_000000', [first, dict(mIoU=50, step=10), last])
    write_log(tmp_path / 'detector', '20250102_000000', [dict(loss=1, step=5, loss_cls=0.75, loss_bbox=0.125)])
    work_dirs = {task: tmp_path / task for task in ('segmentor', 'detector')}
    draw_training(work_dirs, tmp_path / 'training.png')

    figure, = figures
    lines = [[line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes]
    assert lines == [
        [[[10, 1], [20, 0.5]], [[10, 1], [20, 0.25]]],
        [[[10, 1], [20, 80]]],
        [[[5, 0.75]]],
        [[[5, 0.125]]]]
    assert [axis.get_title() for axis in figure.axes] == [curves.title for task in work_dirs for curves in CURVES[task]]


def test_latencies_of_all_tasks_share_an_axis(figures, tmp_path):
    latencies = {
        'segmentor': dict(branches=Latency(4, 3, 5), training=Latency(3, 2, 4), deploy=Latency(2, 1, 3)),
        'detector': dict(branches=Latency(8, 7, 10), training=Latency(6, 5, 7), deploy=Latency(5, 4, 6))}
    draw_latency(latencies, tmp_path / 'latency.png')
    figure, = figures
    assert [[bar.get_width() for bar in axis.patches] for axis in figure.axes] == [[4, 3, 2], [8, 6, 5]]
    assert [axis.get_xlim() for axis in figure.axes] == [(0, pytest.approx(1.35 * 10))] * 2
    assert [axis.get_title() for axis in figure.axes] == [
        'Latency of the whole segmentor', 'Latency of the whole detector']
