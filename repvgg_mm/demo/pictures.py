"""The pictures of the demo: predictions of both forms beside the truth, training, latency."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from torch import nn

from ..convert.measure import Latency
from ..report.charts import latency_bars
from ..report.pictures import Draw, colours_of

matplotlib.use('Agg')
import matplotlib.pyplot as plt

FORMS = {'branches': 'training form,\nbranch by branch', 'training': 'training form', 'deploy': 'deploy form'}
FORM_COLOURS = ('tab:gray', 'tab:blue', 'tab:green')


class Curves(NamedTuple):
    """One panel of training.png; `keys` of the log and their labels."""

    title: str
    unit: str
    keys: dict[str, str]
    limits: tuple[float | None, float | None] = (0, None)


CURVES = {
    'segmentor': (
        Curves('segmentor: training loss', 'cross-entropy',
               {'decode.loss_ce': 'PSP head', 'aux.loss_ce': 'auxiliary head (x 0.4)'}),
        Curves('segmentor: pixels of the training batches', '% right', {'decode.acc_seg': 'PSP head'}, (None, 100)),
    ),
    'detector': (
        Curves('detector: training loss of the classes', 'focal loss', {'loss_cls': 'RetinaNet head'}),
        Curves('detector: training loss of the boxes', 'L1 loss', {'loss_bbox': 'RetinaNet head'}),
    ),
}


@torch.no_grad()
def draw_predictions(
    models: Mapping[str, nn.Module], dataset: BaseDataset, draw: Draw, path: Path, count: int = 6
) -> None:
    """One row an image: the image, the ground truth and each model's prediction."""
    colours = colours_of(dataset)
    columns = ['image', 'ground truth', *models]
    size = (2.2 * len(columns), 2.2 * count + 0.7)
    figure, axes = plt.subplots(count, len(columns), figsize=size, squeeze=False)

    for row, index in zip(axes, np.linspace(0, len(dataset) - 1, count).astype(int)):
        sample = dataset[int(index)]
        image = sample['inputs'].numpy()[::-1].transpose(1, 2, 0)  # BGR, CHW to RGB, HWC
        row[0].imshow(image)
        draw(row[1], image, sample['data_samples'], 'gt', colours)
        for axis, model in zip(row[2:], models.values()):
            prediction, = model.test_step(pseudo_collate([sample]))
            draw(axis, image, prediction, 'pred', colours)

    for axis in axes.flat:
        axis.axis('off')
    for axis, name in zip(axes[0], columns):
        axis.set_title(name, fontsize=11)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour / 255) for colour in colours]
    figure.legend(handles, dataset.metainfo['classes'], loc='lower center', ncol=len(colours), frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    _save(figure, path)


def draw_training(work_dirs: Mapping[str, Path], path: Path) -> None:
    """A row for each task of `CURVES` that was trained, over its steps."""
    figure, axes = plt.subplots(len(work_dirs), 2, figsize=(9, 3 * len(work_dirs)), squeeze=False)
    for row, (task, work_dir) in zip(axes, work_dirs.items()):
        log = _training_log(work_dir)
        steps = [entry['step'] for entry in log]
        for axis, curves in zip(row, CURVES[task]):
            for key, label in curves.keys.items():
                values = [entry[key] for entry in log]
                axis.plot(steps, values, label=label)
            axis.set(xlabel='step', ylabel=curves.unit, title=curves.title, ylim=curves.limits)
            axis.legend(frameon=False)
    figure.tight_layout()
    _save(figure, path)


def draw_latency(latencies: Mapping[str, Mapping[str, Latency]], path: Path) -> None:
    """A panel for each task, a bar for each form with the quartiles of its latency."""
    figure, axes = plt.subplots(len(latencies), figsize=(6.5, 1.8 * len(latencies) + 0.6), sharex=True, squeeze=False)
    longest = 0.0
    for axis, (task, found) in zip(axes[:, 0], latencies.items()):
        named = {name: found[form] for form, name in FORMS.items()}
        latency_bars(axis, named, FORM_COLOURS)
        axis.set_title(f'Latency of the whole {task}', fontsize=11)
        longest = max(longest, *(latency.upper_ms for latency in named.values()))

    axes[0, 0].set_xlim(0, 1.35 * longest)  # the same for all, to be compared
    axes[-1, 0].set_xlabel('ms an image, median and quartiles')
    figure.tight_layout()
    _save(figure, path)


def _training_log(work_dir: Path) -> list[dict]:
    """The entries of the newest run that have a loss, one a step that was logged."""
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    entries = map(json.loads, newest.read_text(encoding='utf-8').splitlines())
    return [entry for entry in entries if 'loss' in entry]


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
