"""From a config to a Runner of MMEngine, on any number of processes, with or without a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import register_backend
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..environment import check_torchvision
from ..openmmlab.config import explained
from ..openmmlab.data import ClassesHook, check_dataset
from ..openmmlab.model import check_widths, replace_sync_bn
from .compiling import PlainGroupsHook
from .launchers import join_on_cpu, set_ranks
from .preemption import SaveOnSignalHook
from .resume import IgnoreSavedConfigHook, SeedEachStepHook
from .work_dir import AtomicLocalBackend, OwnWorkDirHook, check_work_dir


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
            launcher has not started this process, does not tell where all meet, or they do not find each other.
    """
    check_torchvision()
    for split in splits:
        check_dataset(cfg, split)
    check_work_dir(Path(cfg.work_dir))
    if cfg.launcher != 'none':
        set_ranks(cfg.launcher)
        cfg.launcher = 'pytorch'  # whose variables are set now
        if not torch.cuda.is_available():
            join_on_cpu(cfg)
            _train_on_cpu(cfg)

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
        runner.register_hook(PlainGroupsHook())
        _save_on_signals(runner)
    return runner


def _save_on_signals(runner: Runner) -> None:
    """From here on, so that workers of data loaders, which are started later, outlive a signal to all processes."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, SaveOnSignalHook)]
    if not hooks:
        hooks = [SaveOnSignalHook()]
        runner.register_hook(hooks[0])
    hooks[0].watch()


def _train_on_cpu(cfg: Config) -> None:
    """Let the model of `cfg` be trained by several processes without a GPU."""
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.setdefault('model_wrapper_cfg', wrapper)
    cfg.model_wrapper_cfg['device_ids'] = None
    replace_sync_bn(cfg)
