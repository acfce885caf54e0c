"""The metric by which an engine of fewer bits is judged: the validation set's own."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.config import Config

from ..errors import UserError
from ..openmmlab.config import copy_of

METRICS = (('mIoU', 1), ('bbox_mAP', 100), ('mAP', 100))  # the last part of a metric's name, and its points
ROUNDING = 1e-9  # of points


def validation_config(cfg: Config) -> Config:
    """A copy whose test set is the validation set, and quiet."""
    cfg = copy_of(cfg)
    if cfg.get('val_dataloader'):
        cfg.test_dataloader = cfg.val_dataloader
        cfg.test_evaluator = cfg.val_evaluator
        cfg.test_cfg = {}
    cfg.log_level = 'ERROR'
    return cfg


def headline(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The name of the metric by which an engine is judged, and its points: mIoU, or mAP x 100.

    Raises:
        UserError: it is neither.
    """
    for last, points in METRICS:
        for name, value in metrics.items():
            if name.rsplit('/', 1)[-1] == last:
                return name, points * value
    raise UserError(
        'An engine of fewer bits is judged by mIoU or mAP, and the val_evaluator of this config gives '
        f'{", ".join(metrics) or "nothing"}. Add an IoUMetric or a CocoMetric.')
