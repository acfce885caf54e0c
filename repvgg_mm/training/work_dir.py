"""The folder of a training: one training at a time writes to it, and nothing outside it is removed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout  # torch brings it
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ..errors import UserError
from ..files.atomic import atomic_path

LOCK = '.training.lock'
HALF_WRITTEN = re.compile(r'\.(.+\.pth|last_checkpoint)\.\w{8}')  # what `atomic_path` names a file until it is whole
OUTDATED = '.{}.is_outdated'  # beside a checkpoint that is removed once the next one is there
BEST = 'best_ckpt'         # of MMEngine's message hub: best_ckpt, or best_ckpt_METRIC for each of several
STEPS_KEPT = 'keep_ckpt_ids'


def check_work_dir(work_dir: Path) -> None:
    """Raise UserError if no file can be made in a folder, which is made if there is none."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UserError(
            f'A run writes its log and checkpoints to --work-dir, and {work_dir} cannot be written to '
            f'({error.strerror}). Choose another folder.') from None


def claim(work_dir: Path) -> BaseFileLock:
    """Keep other trainings out of a folder until the lock is released or this process ends, and clean it.

    What killed trainings left goes: half a file, and a checkpoint that a later one has replaced.

    Raises:
        UserError: a training that still runs writes to the folder.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work_dir / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f'One training at a time writes to a work dir, and another one that still runs writes to {work_dir}. '
            'Wait for it, stop it, or choose another --work-dir.') from None
    except (OSError, NotImplementedError):
        return lock  # a file system without locks

    remove_leftovers(work_dir)
    return lock


def remove_leftovers(work_dir: Path) -> None:
    """Remove what killed trainings left in `work_dir`."""
    for path in work_dir.iterdir():
        if HALF_WRITTEN.fullmatch(path.name) and path.is_file():
            path.unlink()

    for marker in work_dir.glob(OUTDATED.format('*.pth')):
        outdated = work_dir / marker.name.removeprefix('.').removesuffix('.is_outdated')
        if is_outdated(outdated):
            outdated.unlink()
        marker.unlink()


def is_outdated(checkpoint: Path) -> bool:
    """Whether a training was about to remove it, and has written a later one: then the next training removes it."""
    return checkpoint.is_file() and _marker(checkpoint).exists() and _has_newer(checkpoint)


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
            _marker(Path(filepath)).unlink(missing_ok=True)
            while self._outdated:
                outdated = self._outdated.pop()
                outdated.unlink(missing_ok=True)
                _marker(outdated).unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        if Path(filepath).suffix == '.pth':
            _marker(Path(filepath)).touch()
            self._outdated.add(Path(filepath))
        else:
            super().remove(filepath)


class OwnWorkDirHook(Hook):
    """Holds a training's work dir, and lets a resumed one remove nothing elsewhere, whatever its checkpoint names.

    Raises:
        UserError: another training writes to the work dir.
    """

    def __init__(self, work_dir: Path) -> None:
        self.lock = claim(work_dir) if is_main_process() else None

    def after_load_checkpoint(self, runner: Runner, checkpoint: MutableMapping) -> None:
        hub = checkpoint.get('message_hub')
        if isinstance(hub, Mapping):
            keep_to_folders(hub.get('runtime_info', {}), folders_of_checkpoints(runner))

    def after_run(self, runner: Runner) -> None:
        if self.lock:
            self.lock.release()


def folders_of_checkpoints(runner: Runner) -> list[Path]:
    """The work dir, and where a CheckpointHook with an `out_dir` writes."""
    work_dir = Path(runner.work_dir)
    folders = [work_dir]
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.out_dir:
            folders.append(Path(hook.out_dir) / work_dir.name)
    return folders


def keep_to_folders(info: MutableMapping, folders: list[Path]) -> None:
    """Let what a run remembers as its best checkpoints be files in `folders`, by their names, or forget them.

    A work dir can be a copy of another one, whose checkpoints MMEngine would remove from here.
    """
    for key in [key for key in info if str(key).startswith(BEST)]:
        name = re.split(r'[/\\]', str(info[key]))[-1]
        own = [folder / name for folder in folders if name and (folder / name).is_file()]
        if own:
            info[key] = str(own[0])
        else:
            info.pop(key)
            info.pop(key.replace(BEST, 'best_score'), None)

    steps = info.get(STEPS_KEPT)
    if steps is not None and not (isinstance(steps, list) and all(type(step) is int for step in steps)):
        info.pop(STEPS_KEPT)


def _has_newer(checkpoint: Path) -> bool:
    written = checkpoint.stat().st_mtime_ns
    kind = checkpoint.name.rstrip('0123456789.pth')
    return any(path.stat().st_mtime_ns > written for path in checkpoint.parent.glob(f'{kind}*.pth'))


def _marker(checkpoint: Path) -> Path:
    return checkpoint.with_name(OUTDATED.format(checkpoint.name))
