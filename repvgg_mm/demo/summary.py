"""What stands at the end of the demo: a table of both forms and the pictures, made from what its tools wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import find_latest_checkpoint
from torch import nn

from ..convert.measure import Latency, count_parameters, form_latency
from ..deploy.checkpoint import Checkpoint, load_model
from ..deploy.costs import latency_rows, size_rows, table_of_forms
from ..report.pictures import draw_boxes, draw_mask
from .pictures import draw_latency, draw_predictions, draw_training

DRAW = {'segmentor': draw_mask, 'detector': draw_boxes}


class Metric(NamedTuple):
    """What a task is judged by: its name in the table, its name in a log, and what makes it percent."""

    title: str
    key: str
    to_percent: float


METRICS = {
    'segmentor': Metric('mIoU', 'mIoU', 1),
    'detector': Metric('bbox mAP', 'coco/bbox_mAP', 100),
}


def summarise(configs: dict[str, str], folder: Path) -> str:
    """Draw the pictures in `folder`; return a table of both forms of the models of 'segmentor' and 'detector'.

    What the tools wrote for each lies in `folder` under its name: train, test_training_form, deploy
    (deploy.py, deploy.pth) and test_deploy_form.
    """
    rows, latencies = [], {}
    for task, config in configs.items():
        results = folder / task
        cfg = Config.fromfile(config)
        models = _both_forms(cfg, results)

        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        draw_predictions(models, dataset, DRAW[task], folder / f'{task}_predictions.png')

        image = torch.randn(1, *dataset[0]['inputs'].shape)
        latencies[task] = form_latency(*models.values(), image, rounds=30)
        rows += _rows(task, results, models, latencies[task])

    draw_training({task: folder / task / 'train' for task in configs}, folder / 'training.png')
    draw_latency(latencies, folder / 'latency.png')
    pictures = [str(path) for path in sorted(folder.glob('*.png'))]
    return f'\n{table_of_forms(rows)}\nPictures: {", ".join(pictures)}'


def _both_forms(cfg: Config, results: Path) -> dict[str, nn.Module]:
    """The trained model and the converted one, from what the tools wrote."""
    trained = Checkpoint.read(find_latest_checkpoint(str(results / 'train')))
    converted = Checkpoint.read(results / 'deploy' / 'deploy.pth')
    deploy_cfg = Config.fromfile(results / 'deploy' / 'deploy.py')
    return {'training form': load_model(cfg, trained), 'deploy form': load_model(deploy_cfg, converted)}


def _rows(
    task: str, results: Path, models: Mapping[str, nn.Module], latency: Mapping[str, Latency]
) -> list[tuple[str, str, str]]:
    """Of one task: its metric in both forms, then what both forms cost."""
    metric = METRICS[task]
    reached = []
    for name in ('test_training_form', 'test_deploy_form'):
        value = _metric(results / name, metric.key) * metric.to_percent
        reached.append(f'{value:.2f}')

    rows = [(f'{task}: {metric.title}', *reached)]
    trained, deploy = (count_parameters(model) for model in models.values())
    for row in latency_rows(latency) + size_rows((trained, deploy)):
        rows.append((f'  {row.name}', *row.texts))
    return rows


def _metric(work_dir: Path, name: str) -> float:
    """The value in the log of tools/test.py; nan if a detector found nothing, which CocoMetric does not count."""
    logs = sorted(work_dir.glob('*/*.json'))
    return json.loads(logs[-1].read_text(encoding='utf-8')).get(name, float('nan'))
