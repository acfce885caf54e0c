"""`repvgg-mm COMMAND ...`, `python -m repvgg_mm COMMAND ...` and the files in tools: one command line."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from . import register
from .commands.arguments import parse
from .environment import check_environment
from .errors import UserError


def run(argv: Sequence[str] | None = None) -> None:
    """Do what a command line asks for; UserError if it cannot be done."""
    args = parse(argv)

    check_environment()
    register()
    command = import_module(f'{__package__}.commands.{args.command}')
    command.run(args)


def run_script(script: Callable[[], None]) -> None:
    """Run a script's function; a UserError becomes one message on stderr and exit code 1.

    Stopped by a signal (SIGTERM, or SIGINT from Ctrl+C) it removes what it has half written, and ends with 128 + the
    number of the signal.
    """
    stopped_by: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped_by.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
    try:
        script()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if stopped_by:  # MMEngine takes what ends it while it formats a config for a fault of the config
            sys.exit(128 + stopped_by[0])
        if not isinstance(error, UserError):
            raise
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


def main() -> None:
    """The command line of this process."""
    run_script(run)


if __name__ == '__main__':
    sys.argv[0] = 'repvgg-mm'
    main()
