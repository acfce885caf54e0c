"""Runs programs as processes of their own that start with torch, MMEngine and mmcv imported: 3 of a tool's 4 seconds.

Reads one line of JSON a program from standard input, answers with its exit code. The toolboxes are not imported: what
a tool forgets to register is missing here too. Where these imports start a thread, as with torch 2.4.1, a copy of the
process could wait for it without end: then this ends at once, and tools start as they do elsewhere.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import matplotlib
import mmcv.ops  # noqa: F401
import mmengine.runner  # noqa: F401
from exit_codes import exit_code

matplotlib.use('agg')


def run(argv: list[str], environment: dict[str, str], folder: str, streams: list[str], file_size: list[int]) -> None:
    """Does not return: the process ends as the program does."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_FSIZE, file_size)
    for descriptor, path in enumerate(['/dev/null', *streams]):
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = os.path.dirname(os.path.join(folder, argv[0]))
    code = exit_code(argv)
    # As an interpreter ends: threads are waited for, and what was registered with atexit runs.
    sys.exit(code)


THREADS = Path('/proc/self/task')
if not THREADS.exists() or len(list(THREADS.iterdir())) > 1:
    sys.exit('cannot be copied')

print('warm', flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(**json.loads(line))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
