"""From a config to a Runner of MMEngine, on any number of processes, with or without a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from .checkpoint import atomic_path, read_checkpoint
from .data_config import check_dataset
from .errors import UserError
from .hooks import IgnoreSavedConfigHook, SeedEachStepHook
from .model_config import explained, replace_sync_bn

SAVED_STEP = re.compile(r'(iter|epoch)_\d+\.pth')
RUN_PARTS = ('meta', 'state_dict', 'message_hub', 'optimizer')  # of a checkpoint that training can go on from


def build_runner(cfg: Config, *splits: str) -> Runner:
    """A Runner for a config whose `launcher` and `work_dir` are set.

    Without a GPU several processes talk through gloo and SyncBN becomes BN: neither nccl nor SyncBN
    runs on a CPU.

    Its checkpoints are written atomically, and a resumed run continues as if it had not been interrupted.

    Raises:
        UserError: the dataset of one of `splits` ('train', 'val', 'test') is not where the config
            says it is, or the config names a part or an option that there is not.
    """
    for split in splits:
        check_dataset(cfg, split)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        _init_dist_on_cpu(cfg)
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
    with explained():
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    if 'train' in splits:
        runner.register_hook(SeedEachStepHook())
        runner.register_hook(IgnoreSavedConfigHook())
    return runner


class AtomicLocalBackend(LocalBackend):
    """MMEngine's local files, of which a reader sees the old content or the whole new one.

    A checkpoint (`.pth`) is removed when the next one has been written: MMEngine's CheckpointHook asks
    for it before, and a kill would then leave none with `max_keep_ckpts=1`.
    """

    _outdated: set[Path] = set()  # MMEngine makes a backend for every use

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with atomic_path(filepath) as temporary:
            temporary.write_bytes(obj)
        if Path(filepath).suffix == '.pth':
            self._outdated.discard(Path(filepath))
            while self._outdated:
                self._outdated.pop().unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        if Path(filepath).suffix == '.pth':
            self._outdated.add(Path(filepath))
        else:
            super().remove(filepath)


def resume_latest(cfg: Config, *, trust: bool = False) -> str:
    """Let the Runner of `cfg` continue from the latest checkpoint in its work dir, see `resume_from`.

    The latest is the one that `last_checkpoint` names or, if that one is not there, the newest
    `iter_*.pth` or `epoch_*.pth`. Returns its path.

    Raises:
        UserError: there is none, or training cannot go on from it.
    """
    latest = Path(find_latest_checkpoint(cfg.work_dir) or '')
    if not latest.is_file():
        written = [path for path in Path(cfg.work_dir).glob('*.pth') if SAVED_STEP.fullmatch(path.name)]
        if not written:
            raise UserError(f'--resume goes on from a checkpoint in the work dir, and {cfg.work_dir} has none. '
                            'Check --work-dir, or start without --resume.')
        latest = max(written, key=lambda path: path.stat().st_mtime)
    resume_from(cfg, str(latest), trust=trust)
    return str(latest)


def resume_from(cfg: Config, path: str, *, trust: bool = False) -> None:
    """Let the Runner of `cfg` continue from a checkpoint, with the seed of that run unless the config sets one.

    Raises:
        UserError: it cannot be read, or it is not a Runner's.
    """
    checkpoint = read_checkpoint(path, trust=trust)
    missing = [part for part in RUN_PARTS if not isinstance(checkpoint.get(part), dict)]
    if missing:
        raise UserError(f'Training goes on from a checkpoint of a whole run, and {path} has no {", ".join(missing)}. '
                        'To start from its weights, train without --resume and with --cfg-options load_from=FILE.')
    meta = {'seed': None, **checkpoint['meta']}
    for name in ('epoch', 'iter', 'seed'):
        if not isinstance(meta.get(name), int) and (name, meta.get(name)) != ('seed', None):
            raise UserError(f'A run is counted in whole numbers, and {path} has the {name} {meta.get(name)!r}. '
                            'Go on from another checkpoint, or start without --resume.')
    randomness = dict(cfg.get('randomness') or {})
    if randomness.get('seed') is None and meta['seed'] is not None:
        cfg.randomness = {**randomness, 'seed': meta['seed']}
    cfg.load_from, cfg.resume = path, True


def usable_device(name: str | None) -> torch.device:
    """The device of that name, a GPU by default if there is one; UserError if torch cannot use it here."""
    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f'A device is one that torch can use here, and {name} is not '
                        f'({str(error).splitlines()[0][:120]}). Use --device cpu.') from None


def _init_dist_on_cpu(cfg: Config) -> None:
    # MMEngine's launchers read ranks and addresses from the environment and then choose a CUDA device.
    choose_device = torch.cuda.set_device
    torch.cuda.set_device = lambda device: None
    try:
        if not is_distributed():
            init_dist(cfg.launcher, backend='gloo')
    finally:
        torch.cuda.set_device = choose_device
    cfg.setdefault('model_wrapper_cfg', dict(
        type='MMDistributedDataParallel', broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False)))
    cfg.model_wrapper_cfg['device_ids'] = None
    replace_sync_bn(cfg)
