"""MMEngine's `compile=True`, with which torch compiles a whole training step."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner


class PlainGroupsHook(Hook):
    """Gives an optimizer plain dicts as groups of its parameters, as torch's compiler wants them.

    MMEngine makes them of its own kind of dict where `paramwise_cfg` is set, and torch 2.13 then ends in an internal
    error: 'UserDefinedDictVariable' object has no attribute 'items'.
    """

    def before_train(self, runner: Runner) -> None:
        if runner.cfg.get('compile') and isinstance(runner.optim_wrapper, OptimWrapper):
            optimizer = runner.optim_wrapper.optimizer
            optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
