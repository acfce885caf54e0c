"""Run many jobs, each in a copy of this process: a file of JSON with command lines in, a list of how each ended out.

A command line is a tool and its arguments, or `read PATH` (a checkpoint) or `engine PATH`. An end is a dict of `code`
(negative: of the signal that killed it), `message` (the last of what it wrote), `memory` (MB at the peak, beyond what
the process had before) and `seconds`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import mmdet.models  # noqa: F401
import mmengine.runner  # noqa: F401
import mmseg.models  # noqa: F401
from exit_codes import exit_code

from repvgg_mm import read_checkpoint
from repvgg_mm.engine import Engine
from repvgg_mm.errors import UserError

STATUS = Path('/proc/self/status')
MOST_SECONDS = 120
LONGEST_MESSAGE = 20_000


def work(command: list[str]) -> int:
    """The exit code; a UserError of a reader counts as that of a tool."""
    kind, *words = command
    if kind not in ('read', 'engine'):
        return exit_code(command)
    try:
        read_checkpoint(words[0]) if kind == 'read' else Engine(words[0], threads=1)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def memory(name: str) -> int:
    """In MB, of this process."""
    line, = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) // 1024


def child(command: list[str], out: str) -> None:
    """Does not return."""
    descriptor = os.open(out, os.O_RDWR)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.alarm(MOST_SECONDS)
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before = memory('VmRSS')
    code = work(command)
    print(f'\nMEMORY {memory("VmHWM") - before}', file=sys.stderr, flush=True)
    os._exit(code)


def measured(command: list[str]) -> dict:
    with tempfile.NamedTemporaryFile() as out:
        begin, process = time.monotonic(), os.fork()
        if process == 0:
            child(command, out.name)
        _, status = os.waitpid(process, 0)
        message, _, peak = out.read().decode(errors='replace').rpartition('\nMEMORY ')
        return dict(
            code=os.waitstatus_to_exitcode(status),
            message=message.strip()[-LONGEST_MESSAGE:],
            memory=int(peak) if peak.strip().isdigit() else None,
            seconds=round(time.monotonic() - begin, 2))


runs = json.loads(Path(sys.argv[1]).read_text())
results = [measured(command) for command in runs]
print('RESULTS' + json.dumps(results))
