"""From a config to a Runner of MMEngine, on any number of processes, with or without a GPU."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed
from mmengine.fileio import register_backend
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..environment import check_torchvision
from ..errors import UserError, reason
from .config import explained
from .data import ClassesHook, check_dataset
from .model import check_widths, replace_sync_bn
from .preemption import SaveOnSignalHook
from .resume import IgnoreSavedConfigHook, SeedEachStepHook
from .work_dir import AtomicLocalBackend, OwnWorkDirHook, check_work_dir


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


def build_runner(cfg: Config, *splits: str) -> Runner:
    """A Runner for a config whose `launcher` and `work_dir` are set.

    Without a GPU several processes talk through gloo and SyncBN becomes BN: neither nccl nor SyncBN
    runs on a CPU.

    Its checkpoints are written atomically, and a resumed run continues as if it had not been interrupted.
    A training has its work dir for itself.

    Raises:
        UserError: the dataset of one of `splits` ('train', 'val', 'test') is not where the config
            says it is, the config names a part or an option that there is not or channels of another backbone,
            torchvision does not fit torch, the work dir cannot be written to, another training writes to it, or the
            processes do not find each other.
    """
    check_torchvision()
    for split in splits:
        check_dataset(cfg, split)
    check_work_dir(Path(cfg.work_dir))
    if cfg.launcher != 'none':
        set_ranks(cfg.launcher)
        if not torch.cuda.is_available():
            _init_dist_on_cpu(cfg)

    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
    with explained():
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    check_widths(model, cfg)

    if 'train' in splits:
        runner.register_hook(OwnWorkDirHook(Path(runner.work_dir)))
        runner.register_hook(ClassesHook())
        runner.register_hook(SeedEachStepHook())
        runner.register_hook(IgnoreSavedConfigHook())
        _save_on_signals(runner)
    return runner


def _save_on_signals(runner: Runner) -> None:
    """From here on, so that workers of data loaders, which are started later, outlive a signal to all processes."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, SaveOnSignalHook)]
    if not hooks:
        hooks = [SaveOnSignalHook()]
        runner.register_hook(hooks[0])
    hooks[0].watch()


def check_alone() -> None:
    """Raise UserError if this is one of several processes that were started together."""
    for name, launcher in LAUNCHERS.items():
        count = os.environ.get(launcher.count, '')
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f'Processes train together with --launcher, and {launcher.program} has started {count} here without '
                f'it. Add --launcher {name}, or --launcher none if each is to train alone in a --work-dir of its own.')


def set_ranks(name: str) -> None:
    """Set what torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) from what another launcher tells.

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


def _init_dist_on_cpu(cfg: Config) -> None:
    """Join the other processes, and let the model of `cfg` be trained with them; UserError if that fails."""
    settings = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    timeout = {name: value for name, value in settings.items() if name == 'timeout'}
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

    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.setdefault('model_wrapper_cfg', wrapper)
    cfg.model_wrapper_cfg['device_ids'] = None
    replace_sync_bn(cfg)
