"""A hook for test_validation.py: what a segmentor predicts in a validation or a test is written to a file."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KeepPredictionsHook(Hook):
    def before_val_epoch(self, runner) -> None:
        self.logits = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.logits += [sample.seg_logits.data.clone() for sample in outputs]

    def after_val_epoch(self, runner, metrics=None) -> None:
        torch.save(dict(logits=self.logits, metrics=metrics), Path(runner.work_dir) / f'predicted_{runner.iter}.pth')

    before_test_epoch = before_val_epoch
    after_test_iter = after_val_iter
    after_test_epoch = after_val_epoch
