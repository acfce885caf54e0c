"""The metric of a validation set with that of each class, in points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.config import Config
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.precision.metric import headline, validation_config


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's IoUMetric, which also returns the IoU of each class, in percent, as `class/NAME`."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        intersect, union = (np.sum([_as_numpy(areas) for areas in part], 0) for part in list(zip(*results))[:2])
        for name, iou in zip(self.dataset_meta['classes'], 100 * intersect / union):
            metrics[f'class/{name}'] = float(iou)
        return metrics


def _as_numpy(areas: object) -> np.ndarray:
    return np.asarray(areas, dtype=float)


def points(cfg: Config, weights: Checkpoint | Engine) -> tuple[float, dict[str, float]]:
    """mIoU, or bbox mAP x 100, of the validation set, and the same of each class."""
    cfg = validation_config(cfg)
    if cfg.default_scope == 'mmseg':
        cfg.test_evaluator = dict(cfg.test_evaluator, type='ClassIoUMetric')
    else:
        cfg.test_evaluator = dict(cfg.test_evaluator, classwise=True)

    metrics = evaluate(cfg, weights)
    _, whole = headline(metrics)
    return round(whole, 2), _of_classes(metrics)


def _of_classes(metrics: dict[str, float]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        last = name.rsplit('/', 1)[-1]
        if name.startswith('class/'):
            found[last] = round(value, 1)
        elif last.endswith('_precision'):  # of CocoMetric
            found[last.removesuffix('_precision')] = round(100 * value, 1)
    return found


def spread(values: Sequence[float]) -> str:
    """The mean, and between which values: `48.2 (47.9 to 48.6)`; of one value just that."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})'
