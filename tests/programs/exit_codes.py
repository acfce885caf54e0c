"""How a program ends that is run inside a copy of this process."""

from __future__ import annotations

import runpy
import sys
import traceback


def exit_code(argv: list[str]) -> int:
    """Run a script as an interpreter does: what it says at its end goes to standard error, the code is returned."""
    sys.argv = argv
    code = 0
    try:
        runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
