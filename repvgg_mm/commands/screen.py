"""What a command shows: its steps, a line of progress, the result. The rest goes to the log file of the run.

MMEngine's loggers write everything to a file in the work dir; on the screen they keep to errors here. What other
packages print or warn of goes to that log too. `--verbose` leaves all of it on the screen.
"""

from __future__ import annotations

import io
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from numbers import Number
from pathlib import Path
from typing import TextIO

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..deploy.hook import written_checkpoints
from ..errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
PARTS_OF_TRAINING = 4     # lines of progress where the screen is a file
WINDOWS = os.name == 'nt'  # whose shell has quotes of its own
SECONDS_BETWEEN = 0.5     # of two where it is a terminal


class Screen:
    """Where a command prints; `verbose` as the user asked for it."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.stream = sys.stdout
        self.work_dir: str | None = None  # of a run: its log is there
        self.line_is_open = False  # on a terminal, which `update` writes without an end

    def say(self, text: str) -> None:
        """A line, from the first of several processes only."""
        if not is_main_process():
            return
        if self.line_is_open:
            print(file=self.stream)
        self.line_is_open = False
        print(text, file=self.stream, flush=True)

    def update(self, text: str) -> None:
        """A line that the next one replaces, on a terminal."""
        if is_main_process():
            self.line_is_open = True
            print(f'\r{text:<100}', end='', file=self.stream, flush=True)


@contextmanager
def open_screen(verbose: bool) -> Iterator[Screen]:
    """Let the body say what a user needs, and send what others say to the log of the run.

    Warnings of this package and errors stay on the screen.
    """
    screen = Screen(verbose)
    if verbose:
        yield screen
        return

    try:
        with _quiet_loggers(screen.stream), _quiet_warnings(), redirect_stdout(_ToLog()):
            yield screen
    except UserError:
        raise
    except Exception:  # a stack trace follows
        if screen.work_dir and log_of(screen.work_dir):
            screen.say(f'The run ended early; its log is {log_of(screen.work_dir)}')
        raise


def timed_progress(screen: Screen) -> Callable[[str], None]:
    """Says a step with the seconds since now; a table, of several lines, with --verbose alone."""
    start = time.perf_counter()

    def progress(step: str) -> None:
        if '\n' in step and not screen.verbose:
            return
        seconds = time.perf_counter() - start
        screen.say(f'[{seconds:5.1f} s] {step}')
    return progress


class ProgressHook(Hook):
    """Shows a training on the screen: steps, loss, time left; what validation found; the files at the end."""

    priority = 'LOWEST'  # after the loss is logged and checkpoints are written

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.start = time.perf_counter()
        self.shown = 0.0
        self.first = 0

    def before_train(self, runner: Runner) -> None:
        self.start = time.perf_counter()
        self.first = runner.iter
        self.screen.say(f'Training {runner.max_iters - runner.iter} steps; log: {_log_file(runner)}')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: Mapping | None = None
    ) -> None:
        step, total = runner.iter + 1, runner.max_iters
        terminal = self.screen.stream.isatty()
        every = math.ceil(total / PARTS_OF_TRAINING)
        if not terminal and step % every and step != total:
            return
        now = time.perf_counter()
        if terminal and now - self.shown < SECONDS_BETWEEN and step != total:
            return

        self.shown = now
        a_step = (now - self.start) / (step - self.first)
        words = [f'step {step} of {total}']
        loss = (outputs or {}).get('loss')
        if loss is not None:
            words.append(f'loss {loss.item():.4g}')
        words += [f'{a_step:.2g} s a step', f'{a_step * (total - step):.0f} s left']
        show = self.screen.update if terminal else self.screen.say
        show('  ' + ', '.join(words))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        self.screen.say(f'  validation: {metrics_text(metrics or {})}')

    def after_train(self, runner: Runner) -> None:
        written = written_checkpoints(runner)
        if written:
            self.screen.say(f'Wrote {", ".join(map(str, written))}')


def command_line(command: str, *words: object) -> str:
    """What to type for a command of this package, in the folder where the user is."""
    script = shutil.which('repvgg-mm')
    here = script is not None and Path(script).parent == Path(sys.executable).parent
    start = ['repvgg-mm'] if here else [sys.executable, '-m', 'repvgg_mm']
    line = [*start, command, *map(str, words)]
    return subprocess.list2cmdline(line) if WINDOWS else shlex.join(line)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Names and values in one line."""
    words = []
    for name, value in metrics.items():
        if isinstance(value, Number):
            words.append(f'{name} {value:.4g}')
    return ', '.join(words) or 'nothing was measured'


def log_of(work_dir: str | Path) -> Path | None:
    """The newest log file in a work dir."""
    logs = sorted(Path(work_dir).glob('*/*.log'), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else None


class _ToLog(io.TextIOBase):
    """A text stream whose lines go to the log of the run."""

    def __init__(self) -> None:
        self.line = ''

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split('\n')
        for line in lines:
            _log(line)
        return len(text)

    def isatty(self) -> bool:
        return False


@contextmanager
def _quiet_loggers(stream: TextIO) -> Iterator[None]:
    """MMEngine's loggers made in the body show errors and what this package logs; their files get everything."""
    make = MMLogger.__init__

    def make_quiet(logger: MMLogger, *args: object, **kwargs: object) -> None:
        make(logger, *args, **kwargs)
        for handler in _screen_handlers(logger):
            handler.setStream(stream)
            handler.addFilter(_is_for_the_screen)

    MMLogger.__init__ = make_quiet
    try:
        yield
    finally:
        MMLogger.__init__ = make


@contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Warnings of other packages go to the log, those of this one to the screen."""
    show = warnings.showwarning

    def show_own(message: Warning | str, category: type, filename: str, lineno: int, *rest: object) -> None:
        if _is_own(filename):
            print(f'Warning: {message}', file=sys.stderr, flush=True)
        else:
            _log(warnings.formatwarning(message, category, filename, lineno).rstrip())

    warnings.showwarning = show_own
    try:
        yield
    finally:
        warnings.showwarning = show


def _is_for_the_screen(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or (_is_own(record.pathname) and record.pathname != __file__)


def _is_own(file: str) -> bool:
    """Whether a file is of this package."""
    return Path(file).is_relative_to(PACKAGE)


def _screen_handlers(logger: logging.Logger) -> Sequence[logging.StreamHandler]:
    return [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]


def _log(text: str) -> None:
    MMLogger.get_current_instance().info(text)


def _log_file(runner: Runner) -> Path:
    return Path(runner.log_dir) / f'{runner.timestamp}.log'
