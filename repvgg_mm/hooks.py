"""What lets an interrupted training run end like one that was not."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed


class SeedEachStepHook(Hook):
    """Makes the random state a function of the Runner's seed and of the step.

    A Runner's checkpoint holds its seed but no generator's state. With this hook the generators are
    seeded with seed + step before every batch of an iteration-based loop, those that resuming skips
    included, and before every epoch of an epoch-based one. What a step draws (dropout, augmentations
    in the main process) then depends neither on validation runs nor on where training was resumed;
    MMEngine itself seeds worker processes and samplers by the seed.

    Resumed and uninterrupted runs end in equal weights on the same machine, with the same number of
    processes and workers and deterministic kernels.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _SeededIterator(loop.dataloader_iterator, runner)
        else:
            _seed(runner, runner.epoch)


class _SeededIterator:
    """Batch after batch from an iterator, each after seeding by its number."""

    def __init__(self, batches: Iterator, runner: Runner) -> None:
        self.batches, self.runner, self.step = batches, runner, 0

    def __iter__(self) -> _SeededIterator:
        return self

    def __next__(self) -> object:
        _seed(self.runner, self.step)
        self.step += 1
        return next(self.batches)

    def skip_iter(self, steps: int) -> None:
        """What OneDL's loop resumes with. Batches are loaded and dropped: workers then draw what they drew before."""
        for _ in range(steps):
            next(self)


def _seed(runner: Runner, step: int) -> None:
    set_random_seed(runner.seed + step, diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False))
