"""What stands at the end of the demo: a table of both forms and the pictures, made from what its tools wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import find_latest_checkpoint
from torch import nn

from ..convert.measure import count_parameters, form_latency
from ..convert.weights import load_strictly
from ..files.checkpoint import read_checkpoint
from ..openmmlab.model import build_model
from ..report.side_by_side import draw_boxes, draw_mask
from .pictures import draw_latency, draw_predictions, draw_training

METRICS = {'segmentor': ('mIoU', 'mIoU', 1), 'detector': ('bbox mAP', 'coco/bbox_mAP', 100)}  # title, key, to percent
DRAW = {'segmentor': draw_mask, 'detector': draw_boxes}


def summarise(configs: dict[str, str], folder: Path) -> str:
    """Draw the pictures in `folder`; return a table of both forms of the models of 'segmentor' and 'detector'.

    What the tools wrote for each lies in `folder` under its name: train, test_training_form, deploy
    (deploy.py, deploy.pth) and test_deploy_form.
    """
    rows, latencies = [], {}
    for task, path in configs.items():
        results = folder / task
        cfg, deploy_cfg = Config.fromfile(path), Config.fromfile(results / 'deploy' / 'deploy.py')
        models = {'training form': _load(cfg, find_latest_checkpoint(str(results / 'train'))),
                  'deploy form': _load(deploy_cfg, results / 'deploy' / 'deploy.pth')}
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        draw_predictions(models, dataset, DRAW[task], folder / f'{task}_predictions.png')
        latency = form_latency(*models.values(), torch.randn(1, *dataset[0]['inputs'].shape), rounds=30)
        latencies[task] = latency
        title, key, to_percent = METRICS[task]
        metrics = [_metric(results / name, key) * to_percent for name in ('test_training_form', 'test_deploy_form')]
        rows += [
            (f'{task}: {title}', *(f'{metric:.2f}' for metric in metrics)),
            ('  latency, branch by branch (ms)', f'{latency["branches"].median_ms:.1f}', ''),
            ('  latency (ms)', *(f'{latency[form].median_ms:.1f}' for form in ('training', 'deploy'))),
            ('  parameters (million)', *(f'{count_parameters(model) / 1e6:.2f}' for model in models.values()))]
    draw_training({task: folder / task / 'train' for task in configs}, folder / 'training.png')
    draw_latency(latencies, folder / 'latency.png')
    lines = [f'\n| {"":<32} | {"training form":>14} | {"deploy form":>14} |', f'|{"-" * 34}|{"-" * 15}:|{"-" * 15}:|']
    lines += [f'| {name:<32} | {before:>14} | {after:>14} |' for name, before, after in rows]
    return '\n'.join([*lines, f'Pictures: {", ".join(str(path) for path in sorted(folder.glob("*.png")))}'])


def _load(cfg: Config, checkpoint: str | Path) -> nn.Module:
    model = build_model(cfg)
    load_strictly(model, read_checkpoint(checkpoint), str(checkpoint))
    return model.eval()


def _metric(work_dir: Path, name: str) -> float:
    """The value in the log of tools/test.py; nan if a detector found nothing, which CocoMetric does not count."""
    return json.loads(sorted(work_dir.glob('*/*.json'))[-1].read_text()).get(name, float('nan'))
