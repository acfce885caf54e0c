"""A hook for test_distributed.py: every rank writes the weights it starts from and ends with."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class DumpWeightsHook(Hook):
    def before_train(self, runner) -> None:
        if runner.rank == 0:
            torch.save(runner.model.module.state_dict(), Path(runner.work_dir) / 'start.pth')

    def after_train(self, runner) -> None:
        torch.save(runner.model.module.state_dict(), Path(runner.work_dir) / f'rank{runner.rank}.pth')
