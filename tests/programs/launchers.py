"""Train two processes through each launcher: equal weights on both, and a killed run ends like a whole one.

    python tests/programs/launchers.py [namespaces] [mpi] [mpi-hosts] [slurm]

As root on Linux, some minutes, on CPUs. `namespaces` joins two network namespaces, which stand for two machines, with
tools/dist_train.sh; `mpi` runs Open MPI's mpirun, and `mpi-hosts` does so over those two; `slurm` a Slurm of this
machine alone, made in a temporary folder. Debian has the programs in iproute2, openmpi-bin, and slurmctld, slurmd,
slurm-client and munge. A way whose programs are not installed is named and not run. A fault is a stack trace of this
program.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / 'training')]
from hostile_checkpoints import shapes_model  # noqa: E402
from test_preemption import assert_same_end  # noqa: E402
from tool_runs import ROOT, derived_config, free_port, iterations, small_data  # noqa: E402

from repvgg_mm import read_checkpoint  # noqa: E402
from repvgg_mm.demo.shapes import make_shapes  # noqa: E402
from repvgg_mm.training.launchers import LAUNCHERS  # noqa: E402

STEPS, SAVE_EVERY = 100, 10
SECONDS = 300  # that a run may take
NAMESPACES = [f'repvgg{os.getpid()}-{number}' for number in range(2)]
ADDRESSES = ['10.77.0.1', '10.77.0.2']
TRAIN = [sys.executable, 'tools/train.py']
SLURM = """
ClusterName=repvgg
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPort={port}
SlurmdPort={other_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={processors}
PartitionName=all Nodes={host} Default=YES
"""

AGENT = """#!/bin/bash
# In the place of ssh, which mpirun starts as: ssh HOST COMMAND...
declare -A namespaces=({pairs})
namespace=${{namespaces[$1]}}
shift
exec ip netns exec "$namespace" unshare --uts bash -c "hostname $namespace; $*"
"""


class Way(NamedTuple):
    """How two processes are started: what is needed, and the commands that start one training."""

    launcher: str
    programs: tuple[str, ...]
    environment: Callable[[Path], object]  # a context: what runs around all trainings
    commands: Callable[[list[str]], list[list[str]]]
    signals: dict[str, Callable[[Run], None]]
    clean: Callable[[], None] = lambda: None  # after a kill


class Run(NamedTuple):
    """A training that was started."""

    way: Way
    work_dir: Path
    processes: list[subprocess.Popen]
    output: Path


def on_two_hosts(words: list[str]) -> list[list[str]]:
    commands = []
    for number, namespace in enumerate(NAMESPACES):
        variables = ['NNODES=2', f'NODE_RANK={number}', f'MASTER_ADDR={ADDRESSES[0]}', 'GLOO_SOCKET_IFNAME=eth0']
        script = ['bash', 'tools/dist_train.sh', words[0], '1', *words[1:]]
        commands.append(['ip', 'netns', 'exec', namespace, 'env', *variables, *script])
    return commands


def with_mpirun(words: list[str]) -> list[list[str]]:
    return [['mpirun', '-np', '2', *TRAIN, *words, '--launcher', 'mpi']]


def with_mpirun_on_two_hosts(words: list[str]) -> list[list[str]]:
    hosts = ','.join(f'{address}:1' for address in ADDRESSES)
    variables = []
    for variable in (f'MASTER_ADDR={ADDRESSES[0]}', 'GLOO_SOCKET_IFNAME=eth0', 'MASTER_PORT', 'PYTHONPATH',
                     'OMP_NUM_THREADS'):
        variables += ['-x', variable]
    mpirun = ['mpirun', '-np', '2', '-H', hosts, *variables]
    return [['ip', 'netns', 'exec', NAMESPACES[0], *mpirun, *TRAIN, *words, '--launcher', 'mpi']]


def with_srun(words: list[str]) -> list[list[str]]:
    return [['srun', '-n', '2', *TRAIN, *words, '--launcher', 'slurm']]


@contextmanager
def two_hosts(_folder: Path) -> Iterator[None]:
    """Two network namespaces that a pair of virtual cards joins."""
    first, second = NAMESPACES
    try:
        for namespace in NAMESPACES:
            call('ip', 'netns', 'add', namespace)
            call('ip', '-n', namespace, 'link', 'set', 'lo', 'up')
        call('ip', 'link', 'add', 'eth0', 'netns', first, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', second)
        for namespace, address in zip(NAMESPACES, ADDRESSES):
            call('ip', '-n', namespace, 'address', 'add', f'{address}/24', 'dev', 'eth0')
            call('ip', '-n', namespace, 'link', 'set', 'eth0', 'up')
        yield
    finally:
        for namespace in NAMESPACES:
            subprocess.run(['ip', 'netns', 'delete', namespace])


@contextmanager
def two_hosts_with_mpi(folder: Path) -> Iterator[None]:
    """And a program that starts processes on them, for mpirun."""
    agent = folder / 'agent.sh'
    pairs = zip(ADDRESSES, NAMESPACES)
    agent.write_text(AGENT.format(pairs=' '.join(f'[{address}]={namespace}' for address, namespace in pairs)))
    agent.chmod(0o755)
    os.environ['OMPI_MCA_plm_rsh_agent'] = str(agent)
    os.environ['OMPI_MCA_oob_tcp_if_include'] = 'eth0'
    try:
        with two_hosts(folder):
            yield
    finally:
        del os.environ['OMPI_MCA_plm_rsh_agent'], os.environ['OMPI_MCA_oob_tcp_if_include']


@contextmanager
def slurm_of_one_node(folder: Path) -> Iterator[None]:
    """munged, slurmctld and slurmd with files in `folder`, until the body ends."""
    host = socket.gethostname().split('.')[0]
    config, munge = folder / 'slurm.conf', folder / 'munge'
    for name in ('state', 'spool', 'munge'):
        (folder / name).mkdir(mode=0o700)
    config.write_text(SLURM.format(
        host=host, folder=folder, port=free_port(), other_port=free_port(), processors=os.cpu_count()))
    (munge / 'key').write_bytes(os.urandom(1024))
    (munge / 'key').chmod(0o400)

    files = [f'--{name}-file={munge / name}' for name in ('key', 'pid', 'seed', 'log')]
    daemons = [
        ['munged', '--foreground', '--force', f'--socket={munge}/socket', *files],
        ['slurmctld', '-D', '-f', str(config)],
        ['slurmd', '-D', '-f', str(config)],
    ]
    os.environ['SLURM_CONF'] = str(config)
    with ExitStack() as stack:
        for command in daemons:
            log = stack.enter_context(open(folder / f'{command[0]}.log', 'w'))
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            time.sleep(1)
        call('srun', '-n', '2', 'true')
        yield


def call(*words: str) -> None:
    subprocess.run(words, check=True, timeout=60)


def signal_a_rank(run: Run) -> None:
    """SIGTERM to the process of rank 1."""
    variable = LAUNCHERS[run.way.launcher].rank
    for process in processes_of(run.work_dir):
        if 'python' in process.name() and process.environ().get(variable) == '1':
            process.send_signal(signal.SIGTERM)
            return
    raise AssertionError(f'{variable}=1 is in no process')


def signal_a_host(run: Run) -> None:
    """SIGTERM to the torchrun of the second host."""
    run.processes[1].terminate()


def signal_mpirun(run: Run) -> None:
    run.processes[0].send_signal(signal.SIGUSR1)


def scancel(*flags: str) -> Callable[[Run], None]:
    return lambda run: cancel_all(*flags)


def cancel_all(*flags: str) -> None:
    """Of all jobs there is one. Slurm keeps the place of an srun that was killed, until then."""
    call('scancel', *flags, '--user=root')


WAYS = {
    'namespaces': Way('pytorch', ('ip',), two_hosts, on_two_hosts, {
        'SIGTERM to rank 1': signal_a_rank, 'SIGTERM to the torchrun of the second host': signal_a_host}),
    'mpi': Way('mpi', ('mpirun',), nullcontext, with_mpirun, {
        'SIGTERM to rank 1': signal_a_rank, 'SIGUSR1 to mpirun': signal_mpirun}),
    'mpi-hosts': Way('mpi', ('ip', 'mpirun'), two_hosts_with_mpi, with_mpirun_on_two_hosts, {
        'SIGTERM to rank 1': signal_a_rank}),
    'slurm': Way('slurm', ('munged', 'slurmctld', 'slurmd', 'srun'), slurm_of_one_node, with_srun, {
        'SIGTERM to rank 1': signal_a_rank, 'scancel --signal=USR1': scancel('--signal=USR1'),
        'scancel': scancel()}, cancel_all),
}


def start(way: Way, work_dir: Path, *flags: str) -> Run:
    base = work_dir.parent
    options = [*small_data(base / 'shapes'), *iterations(STEPS, SAVE_EVERY), 'randomness.seed=0']
    words = [str(base / 'small.py'), '--work-dir', str(work_dir), *flags, '--cfg-options', *options]
    port = str(free_port())
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT / 'tests' / 'programs'), 'PYTHON': sys.executable,
        'PORT': port, 'MASTER_PORT': port, 'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}

    output = work_dir.with_suffix('.txt')
    processes = []
    with output.open('w') as stream:
        for command in way.commands(words):
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream))
    return Run(way, work_dir, processes, output)


def finish(run: Run) -> list[int]:
    """The exit codes."""
    return [process.wait(SECONDS) for process in run.processes]


def finish_well(run: Run) -> None:
    assert set(finish(run)) == {0}, run.output.read_text()[-4000:]


def wait_for_a_checkpoint(run: Run) -> None:
    deadline = time.monotonic() + SECONDS
    while not (run.work_dir / f'iter_{SAVE_EVERY}.pth').exists():
        ended = [process for process in run.processes if process.poll() is not None]
        assert not ended and time.monotonic() < deadline, run.output.read_text()[-4000:]
        time.sleep(0.05)


def processes_of(work_dir: Path) -> list[psutil.Process]:
    """Those whose command line names a work dir: launchers and ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(work_dir) in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(run: Run) -> int:
    """SIGKILL for the launchers and all ranks; how many there were."""
    killed = set()
    while found := processes_of(run.work_dir):
        for process in found:
            killed.add(process.pid)
            process.kill()
        for process in run.processes:
            process.wait()
    run.way.clean()
    return len(killed)


def steps_written(work_dir: Path) -> int:
    """Of the checkpoint that --resume takes."""
    return read_checkpoint((work_dir / 'last_checkpoint').read_text())['meta']['iter']


def assert_equal_ranks(work_dir: Path) -> None:
    """And other weights than in the beginning. Running statistics are each rank's own."""
    states = [torch.load(work_dir / f'{name}.pth', weights_only=True) for name in ('rank0', 'rank1', 'start')]
    first, second, beginning = states
    weights = [name for name in first if 'running_' not in name and 'num_batches' not in name]
    assert weights
    for name in weights:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert not all(torch.equal(first[name], beginning[name]) for name in weights)


def resume(way: Way, work_dir: Path, whole: Path) -> None:
    """To the end, which is that of the whole run, bit by bit."""
    finish_well(start(way, work_dir, '--resume'))
    assert_equal_ranks(work_dir)
    assert_same_end(whole / f'iter_{STEPS}.pth', work_dir / f'iter_{STEPS}.pth')


def run_way(name: str, base: Path) -> None:
    way = WAYS[name]
    whole = base / f'{name}-whole'
    example = shlex.join(way.commands(['CONFIG', '--work-dir', 'DIR'])[0]).replace(sys.executable, 'python')
    finish_well(start(way, whole))
    assert_equal_ranks(whole)
    print(f'{name}: {example}: 2 ranks, {STEPS} steps, equal weights on both', flush=True)

    run = start(way, base / f'{name}-killed')
    wait_for_a_checkpoint(run)
    count = kill(run)
    written = steps_written(run.work_dir)
    assert SAVE_EVERY <= written < STEPS
    resume(way, run.work_dir, whole)
    print(f'{name}: {count} processes killed; resumed from step {written}: the end of the whole run, bit by bit')

    for number, (words, send) in enumerate(way.signals.items()):
        run = start(way, base / f'{name}-signal{number}')
        wait_for_a_checkpoint(run)
        send(run)
        codes = finish(run)
        said = run.output.read_text()
        written = steps_written(run.work_dir)
        assert 0 not in codes and written < STEPS, said
        assert said.count(f'Stopped by a signal after step {written}: ') == 1, said
        resume(way, run.work_dir, whole)
        print(f'{name}: {words}: stopped after step {written}, exit codes {codes}; resumed: the end of the whole run',
              flush=True)


def main() -> None:
    names = sys.argv[1:] or list(WAYS)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_shapes(base / 'shapes', num_train=6, num_val=2, size=48)
        derived_config(base / 'small.py', f"""
custom_imports = dict(imports=['repvgg_mm', 'rank_weights'])
custom_hooks = [dict(type='DumpWeightsHook')]
model = dict(_delete_=True, **{shapes_model()})
""")
        for name in names:
            missing = [program for program in WAYS[name].programs if not shutil.which(program)]
            if missing:
                print(f'{name}: not run, {", ".join(missing)} not installed')
                continue
            (base / name).mkdir()
            with WAYS[name].environment(base / name):
                run_way(name, base)


if __name__ == '__main__':
    main()
