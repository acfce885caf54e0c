"""Stop a run of 200 small steps by signals at random moments and resume it: its end must be that of a whole run.

    python tests/programs/signals.py [20]

Takes some minutes; every third signal is SIGTERM, SIGUSR1, SIGINT. The last line counts the runs that ended equal.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / 'training')]
import test_preemption as preemption  # noqa: E402
from hostile_checkpoints import shapes_model  # noqa: E402
from tool_runs import derived_config, run_tool  # noqa: E402

from repvgg_mm.demo.shapes import make_shapes  # noqa: E402

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    preemption.STEPS = 200
    rng, equal = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        shapes = make_shapes(base / 'shapes', num_train=6, num_val=2, size=48)
        config = derived_config(base / 'small.py', f'model = dict(_delete_=True, **{shapes_model()})')
        run_tool(*preemption.command(config, shapes, base / 'whole'))

        for number in range(count):
            work_dir = base / str(number)
            code, output = preemption.stopped(
                preemption.command(config, shapes, work_dir), SIGNALS[number % 3], rng.uniform(0, 3.5))
            assert code in (0, 130, 143), output
            if code:
                run_tool(*preemption.command(config, shapes, work_dir, '--resume'))
            preemption.assert_same_end(base / 'whole' / 'iter_200.pth', work_dir / 'iter_200.pth')
            equal += 1
            print(f'{SIGNALS[number % 3].name}: exit code {code}, {output.strip().splitlines()[-1][:90]}', flush=True)
    print(f'{equal} of {count} ended as the run that nobody stopped')


if __name__ == '__main__':
    main()
