"""Several processes that train together, whatever has started them."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed

from ..errors import UserError, reason


class Launcher(NamedTuple):
    """What starts several processes, and the variables that tell each of them its place."""

    program: str
    rank: str
    count: str
    local_rank: str  # among those of its machine


LAUNCHERS = {
    'pytorch': Launcher('torchrun', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'mpi': Launcher(
        "Open MPI's mpirun", 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    # A batch script has SLURM_PROCID and SLURM_NTASKS too, but no SLURM_STEP_...
    'slurm': Launcher("Slurm's srun", 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'),
}
PAGE = 'docs/train.md, section "Several processes"'


def check_alone() -> None:
    """Raise UserError if this is one of several processes that were started together."""
    for name, launcher in LAUNCHERS.items():
        count = os.environ.get(launcher.count, '')
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f'Processes train together with --launcher, and {launcher.program} has started {count} here without '
                f'it. Add --launcher {name}, or --launcher none if each is to train alone in a --work-dir of its own.')


def set_ranks(name: str) -> None:
    """Set what torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) from what the launcher tells.

    An address and a port that are set stay.

    Raises:
        UserError: the launcher has not started this process, or does not tell where the processes meet.
    """
    launcher = LAUNCHERS[name]
    for variable in (launcher.rank, launcher.count, launcher.local_rank):
        if variable not in os.environ:
            raise UserError(
                f'--launcher {name} is for processes that {launcher.program} starts, and it has not started this one '
                f'({variable} is not set). Start it as in {PAGE}, or leave out --launcher.')

    os.environ['RANK'] = os.environ[launcher.rank]
    os.environ['WORLD_SIZE'] = os.environ[launcher.count]
    os.environ['LOCAL_RANK'] = os.environ[launcher.local_rank]
    if name == 'mpi' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _master_of_mpi()
    if name == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _master_of_slurm()
    os.environ.setdefault('MASTER_PORT', '29500')  # as torch has it


def _master_of_mpi() -> str:
    if os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') != os.environ['OMPI_COMM_WORLD_SIZE']:
        raise UserError(
            'Processes on several machines meet at that of rank 0, which mpirun does not name, and MASTER_ADDR is not '
            'set. Give its address: mpirun -x MASTER_ADDR=HOST ...')
    return '127.0.0.1'


def _master_of_slurm() -> str:
    """The first machine of this job step."""
    machines = os.environ.get('SLURM_STEP_NODELIST', '')
    try:
        listed = subprocess.run(
            ['scontrol', 'show', 'hostnames', machines], capture_output=True, text=True, check=True)
        return listed.stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f'The processes meet at the first machine of the job step, and scontrol did not tell it of {machines!r} '
            f'({reason(error)}). Set MASTER_ADDR to the machine of rank 0.') from None


def join_on_cpu(cfg: Config) -> None:
    """Join the other processes, through gloo; UserError if that fails."""
    settings = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    timeout = {'timeout': settings['timeout']} if 'timeout' in settings else {}
    # MMEngine chooses a CUDA device before it joins them.
    choose_device = torch.cuda.set_device
    torch.cuda.set_device = lambda device: None
    try:
        if not is_distributed():
            socket.getaddrinfo(os.environ['MASTER_ADDR'], None)  # torch tries an unknown name for half an hour
            init_dist('pytorch', backend='gloo', **timeout)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        rank, count = os.environ['RANK'], os.environ['WORLD_SIZE']
        place = f'{os.environ.get("MASTER_ADDR")}:{os.environ.get("MASTER_PORT")}'
        raise UserError(
            f'The processes meet at MASTER_ADDR and MASTER_PORT, and rank {rank} of {count} did not find the others at '
            f'{place} ({reason(error)}). See {PAGE}, for what to check.') from None
    finally:
        torch.cuda.set_device = choose_device
