"""A training that is asked to stop: it finishes its step, writes a checkpoint and ends."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# What schedulers and people send, and the exit code of a training that was ended by it.
CODES = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
if hasattr(signal, 'SIGUSR1'):  # not on Windows
    CODES[signal.SIGUSR1] = 128 + signal.SIGTERM


@HOOKS.register_module()
class SaveOnSignalHook(Hook):
    """Lets a training that gets SIGTERM, SIGUSR1 or SIGINT write a checkpoint before it ends; a second one ends it.

    At the beginning of each step all processes agree whether one of them was signalled. If so, the config's
    CheckpointHook writes at the end of that step, and all end with exit code 143, or 130 after SIGINT. A validation is
    finished before. A run whose checkpoints are counted in epochs finishes its epoch. A resumed run then ends like one
    that was not stopped, see `SeedEachStepHook`.

    A signal to the whole group of processes, as Ctrl+C sends it, ends workers of data loaders that were started
    before `watch` was called; SIGTERM always ends them, and the run with them.
    """

    priority = 'LOWEST'  # after the checkpoint is written

    def __init__(self) -> None:
        self.code = 0       # of the signal that this process got
        self.ending = 0     # the code that all have agreed on
        self.before: dict = {}

    def watch(self) -> None:
        """Take the signals from here on; `before_train` does it too."""
        if self.before or threading.current_thread() is not threading.main_thread():
            return
        for number in CODES:
            self.before[number] = signal.signal(number, self._receive)

    def before_train(self, runner: Runner) -> None:
        self.watch()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if self.ending:
            return
        agreed = torch.tensor([self.code])
        all_reduce(agreed, 'max')
        self.ending = int(agreed)
        if self.ending:
            for hook in _checkpoint_hooks(runner):
                hook.interval, hook.save_begin = 1, 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        in_steps = [hook for hook in _checkpoint_hooks(runner) if not hook.by_epoch]
        if self.ending and (in_steps or not _checkpoint_hooks(runner)):
            self._end(f'step {runner.iter + 1}', in_steps)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.ending:
            self._end(f'epoch {runner.epoch + 1}', _checkpoint_hooks(runner))

    def after_train(self, runner: Runner) -> None:
        self._leave()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.code:
            self._leave()
            raise SystemExit(CODES[number])
        self.code = CODES[number]

    def _end(self, place: str, hooks: list[CheckpointHook]) -> None:
        self._leave()
        if is_main_process():
            written = f'{hooks[0].last_ckpt} is written; go on with --resume' if hooks else 'no hook writes checkpoints'
            print(f'Stopped by a signal after {place}: {written}.', file=sys.stderr, flush=True)
        barrier()  # while one process writes: mpirun and torchrun end all when another one ends
        raise SystemExit(self.ending)

    def _leave(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


def _checkpoint_hooks(runner: Runner) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
