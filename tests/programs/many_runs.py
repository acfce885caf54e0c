"""Run a tool many times in one process: a JSON list of command lines in, a list of what each exited with out."""

import json
import runpy
import sys
import traceback

results = []
for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name='__main__')
        results.append('exit code 0')
    except SystemExit as stop:
        results.append(str(stop.code))
    except BaseException:
        results.append(traceback.format_exc())
print('RESULTS' + json.dumps(results))
