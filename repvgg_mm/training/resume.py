"""What lets an interrupted training run go on safely and end like one that was not interrupted."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint, set_random_seed
from torch.utils.data import DataLoader

from ..errors import UserError, first_line
from ..files.checkpoint import read_checkpoint
from .work_dir import is_outdated

SEEDS = 1 << 32  # numpy's generator takes a seed below it
LIMITS = {'epoch': 1 << 31, 'iter': 1 << 40, 'seed': SEEDS}
HUB_PARTS = ('log_scalars', 'runtime_info', 'resumed_keys')
SAVED_STEP = re.compile(r'(iter|epoch)_\d+\.pth')
RUN_PARTS = ('meta', 'state_dict', 'message_hub', 'optimizer')  # of a checkpoint that training can go on from


def resume_latest(cfg: Config, *, trust: bool = False) -> str:
    """Let the Runner of `cfg` continue from the latest checkpoint in its work dir, see `resume_from`.

    The latest is the one of the name that `last_checkpoint` gives or, if that one is not there or outdated, the newest
    `iter_*.pth` or `epoch_*.pth`. Returns its path.

    Raises:
        UserError: there is none, or training cannot go on from it.
    """
    work_dir = Path(cfg.work_dir)
    latest = Path(find_latest_checkpoint(cfg.work_dir) or '')
    if (work_dir / latest.name).is_file():  # a copied work dir still names the checkpoints of the other one
        latest = work_dir / latest.name
    if not latest.is_file() or is_outdated(latest):
        latest = _newest_step(work_dir)
    resume_from(cfg, str(latest), trust=trust)
    return str(latest)


def resume_from(cfg: Config, path: str, *, trust: bool = False) -> None:
    """Let the Runner of `cfg` continue from a checkpoint, with the seed of that run unless the config sets one.

    Raises:
        UserError: it cannot be read, or it is not a Runner's.
    """
    checkpoint = read_checkpoint(path, trust=trust)
    missing = [part for part in RUN_PARTS if not isinstance(checkpoint.get(part), Mapping)]
    if missing:
        raise UserError(
            f'Training goes on from a checkpoint of a whole run, and {path} has no {", ".join(missing)}. '
            'To start from its weights, train without --resume and with --cfg-options load_from=FILE.')

    meta = {'seed': None, **checkpoint['meta']}
    _check_counts(meta, path)
    _check_length(meta, cfg, path)
    _check_hub(checkpoint['message_hub'], path)

    randomness = dict(cfg.get('randomness') or {})
    if randomness.get('seed') is None and meta['seed'] is not None:
        cfg.randomness = {**randomness, 'seed': meta['seed']}
    cfg.load_from = path
    cfg.resume = True


def _newest_step(work_dir: Path) -> Path:
    written = [path for path in work_dir.glob('*.pth') if SAVED_STEP.fullmatch(path.name)]
    if not written:
        raise UserError(
            f'--resume goes on from a checkpoint in the work dir, and {work_dir} has none. '
            'Check --work-dir, or start without --resume.')
    return max(written, key=lambda path: path.stat().st_mtime)


def _check_counts(meta: Mapping, path: str) -> None:
    """UserError if epoch, step or seed of a run is no whole number from 0 on; there may be no seed."""
    for name, limit in LIMITS.items():
        count = meta.get(name)
        without_seed = name == 'seed' and count is None
        if without_seed:
            continue
        if type(count) is not int or not 0 <= count < limit:
            raise UserError(
                f'A run is counted in whole numbers from 0 to {limit - 1}, and {path} has the {name} {count!r}. '
                'Go on from another checkpoint, or start without --resume.')


def _check_length(meta: Mapping, cfg: Config, path: str) -> None:
    """UserError if the run in a checkpoint is longer than the config asks for; its end is no mistake."""
    for name, key in (('iter', 'max_iters'), ('epoch', 'max_epochs')):
        length = (cfg.get('train_cfg') or {}).get(key)
        if isinstance(length, int) and meta[name] > length:
            raise UserError(
                f'A run goes on up to train_cfg.{key}, which is {length}, and {path} was written at {name} '
                f'{meta[name]}. Set train_cfg.{key} to more, or start without --resume.')


def _check_hub(hub: Mapping, path: str) -> None:
    """UserError if what a Runner's hooks remember is nothing that MMEngine writes."""
    for name in HUB_PARTS:
        if not isinstance(hub.get(name, {}), Mapping):
            raise UserError(
                f'The message hub of a run holds {", ".join(HUB_PARTS)}, each a dict, and in {path} {name} is a '
                f'{type(hub[name]).__name__}. Go on from another checkpoint, or start without --resume.')


@contextmanager
def explained_resuming(path: str | None) -> Iterator[None]:
    """Turn what goes wrong while a Runner takes over the checkpoint at `path` into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.name == 'resume' and 'mmengine' in frame.filename for frame in frames):
            raise
        raise UserError(
            f'A run goes on with the model, optimizer and schedule with which its checkpoint was written, and {path} '
            f'has others ({first_line(error)}). To start from its weights, train without --resume and with '
            f'--cfg-options load_from={path}.') from None


class SeedEachStepHook(Hook):
    """Makes the random state a function of the Runner's seed and of the step.

    A Runner's checkpoint holds its seed but no generator's state. With this hook the generators are
    seeded with seed + step before every batch of an iteration-based loop, those that resuming skips
    included, and before every epoch of an epoch-based one, whose worker processes start anew. What a
    step draws (dropout, augmentations) then depends neither on validation runs nor on where training
    was resumed; MMEngine itself seeds samplers, and the workers of an iteration-based loop, by the seed.

    Resumed and uninterrupted runs end in equal weights on the same machine, with the same number of
    processes and workers and deterministic kernels; an epoch-based one from the end of an epoch.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _SeededIterator(loop.dataloader_iterator, runner)
        else:
            _seed(runner, runner.epoch)
            _restart_workers(loop.dataloader, runner)


class IgnoreSavedConfigHook(Hook):
    """Keeps MMEngine from running the config in a checkpoint, as it does when it resumes.

    It would look for a count of GPUs (`gpu_ids`) there, which MMEngine does not write.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)


class _SeededIterator:
    """Batch after batch from an iterator, each after seeding by its number."""

    def __init__(self, batches: Iterator, runner: Runner) -> None:
        self.batches = batches
        self.runner = runner
        self.step = 0

    def __iter__(self) -> _SeededIterator:
        return self

    def __next__(self) -> object:
        _seed(self.runner, self.step)
        self.step += 1
        return next(self.batches)

    def skip_iter(self, steps: int) -> None:
        """What OneDL's loop resumes with. Batches are loaded and dropped: workers then draw what they drew before."""
        for _ in range(steps):
            next(self)


def _seed(runner: Runner, step: int) -> None:
    by_rank = runner._randomness_cfg.get('diff_rank_seed', False)
    set_random_seed((runner.seed + step) % SEEDS, diff_rank_seed=by_rank)


def _restart_workers(dataloader: DataLoader, runner: Runner) -> None:
    """Persistent workers would go on drawing where they stopped, those of a resumed run begin.

    MMEngine seeds a worker with seed + its number among the workers of all processes; another epoch gets other seeds.
    """
    start = dataloader.worker_init_fn
    if isinstance(start, partial) and start.func is worker_init_fn:
        workers = dataloader.num_workers * get_world_size()
        seed = (runner.seed + runner.epoch * workers) % SEEDS
        dataloader.worker_init_fn = partial(start, seed=seed)
    dataloader._iterator = None
