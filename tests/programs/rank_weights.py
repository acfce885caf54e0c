"""Hooks for tests of several processes: every rank writes its weights; a checkpoint takes its time."""

import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class DumpWeightsHook(Hook):
    """The weights that the ranks start from and end with."""

    def before_train(self, runner) -> None:
        if runner.rank == 0:
            torch.save(runner.model.module.state_dict(), Path(runner.work_dir) / 'start.pth')

    def after_train(self, runner) -> None:
        torch.save(runner.model.module.state_dict(), Path(runner.work_dir) / f'rank{runner.rank}.pth')


@HOOKS.register_module()
class SlowCheckpointHook(CheckpointHook):
    """As on a file system that other work keeps busy."""

    def _save_checkpoint(self, runner) -> None:
        if is_main_process():
            time.sleep(3)
        super()._save_checkpoint(runner)
