"""Images and videos on a command line: which files are meant, where their pictures go, how those are written."""

from __future__ import annotations

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import cv2
import mmcv
import numpy as np

from ..errors import UnusableFile, UserError
from ..files.atomic import atomic_path

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')


@dataclass(frozen=True)
class Source:
    """An image or video and what is to be drawn from it, relative to the folder for pictures."""

    path: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(patterns: Iterable[str | PathLike], out: Path | None = None) -> list[Source]:
    """Every image and video that files, folders and glob patterns name, each once, in their order.

    Targets keep the folders below the deepest one that all `patterns` have in common; where two files
    differ in their suffix only, the suffix becomes part of the name. What lies in `out` is no source,
    unless it is named itself.

    Raises:
        UserError: a pattern names nothing.
    """
    found: dict[Path, None] = {}  # each once, in their order
    roots = []
    for pattern in patterns:
        named = Path(os.path.abspath(Path(pattern).expanduser()))
        root, paths = _matches(named)
        if not paths:
            raise UserError(
                'Pictures are drawn of image or video files, folders of them or quoted patterns such as '
                f"'photos/*.jpg', and {pattern} names none. Check the path; known names end in "
                f'{", ".join(IMAGES + VIDEOS)}.')

        outside = [path for path in paths if path == named or not _lies_in(path, out)]
        if not outside:
            raise UserError(
                'What lies in the folder for pictures is taken for pictures of before, and all '
                f'{len(paths)} files of {pattern} lie in {out}. Choose another --out.')
        roots.append(root)
        found |= dict.fromkeys(outside)

    if not found:
        raise UserError('Pictures are drawn of one image or more, got none. Name files, folders or patterns.')
    return _with_targets(list(found), Path(os.path.commonpath(roots)))


def check_targets(out: Path, targets: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if `out` is no folder that can be written to, or has a target and `overwrite` is false."""
    folders = (out, *out.absolute().parents)
    place = next(folder for folder in folders if folder.exists())
    if not place.is_dir():
        raise UserError(f'Pictures go into a folder, and {place} is a file. Choose another name for --out.')
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f'Pictures go into a folder that you can write to, and {place} is none. Choose another --out.')

    present = [target for target in targets if (out / target).exists()]
    if present and not overwrite:
        raise UserError(
            f'A picture is only overwritten on request, and {out} has {len(present)} of {len(targets)} '
            f'already, such as {present[0]}. Choose another folder, or add --overwrite.')


def write_picture(path: Path, picture: np.ndarray) -> None:
    """An RGB picture as PNG, wholly or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        _, content = cv2.imencode('.png', _bgr(picture))
        temporary.write_bytes(content.tobytes())


def open_video(path: Path) -> mmcv.VideoReader:
    """Raises UnusableFile if it cannot be read."""
    video = mmcv.VideoReader(str(path))
    if not video.opened or not video.width:
        raise UnusableFile(
            f'A video is a file that OpenCV can decode, and {path} is not ({path.stat().st_size} '
            'bytes). It is damaged, incomplete or of another kind: copy it again or convert it to .mp4.')
    return video


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, size: tuple[int, int]) -> int:
    """RGB frames of `size` (width, height) as MPEG-4 in .mp4, wholly or not at all; returns how many there are.

    OpenCV drops the last column or row of an odd size.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
        written = Path(folder, path.name)  # OpenCV goes by the suffix
        codec = cv2.VideoWriter_fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(written), codec, fps, size)
        count = 0
        try:
            for frame in frames:
                writer.write(_bgr(frame))
                count += 1
        finally:
            writer.release()

        if not count or _frames_in(written) != count:  # a full disk is no error to a writer
            raise UserError(
                f'{path} could not be written as a video ({count} frames of {size[0]}x{size[1]}, {fps:g} a '
                'second); nothing was left there. Free space, or convert the source to .mp4 first.')
        os.replace(written, temporary)
    return count


def _with_targets(paths: Sequence[Path], base: Path) -> list[Source]:
    """Each with a target of its own below the folder for pictures."""
    targets = [_target(path.relative_to(base)) for path in paths]
    uses = Counter(targets)
    sources = []
    for path, target in zip(paths, targets):
        if uses[target] > 1:
            stem = path.name.replace('.', '_')
            target = target.with_name(stem + target.suffix)
        sources.append(Source(path, target))
    return sources


def _lies_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.is_relative_to(os.path.abspath(folder))


def _bgr(picture: np.ndarray) -> np.ndarray:
    """RGB as OpenCV writes it."""
    return np.ascontiguousarray(picture[..., ::-1])


def _frames_in(path: Path) -> float:
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)


def _matches(path: Path) -> tuple[Path, list[Path]]:
    """The folder below which a pattern looks, and what it names there."""
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, _below(path)
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    if fixed == path:
        return fixed, []

    paths = []
    for name in sorted(glob.glob(str(path), recursive=True)):
        found = Path(name)
        if found.is_dir():
            paths += _below(found)
        elif _is_known(found):
            paths.append(found)
    return fixed, paths


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file() and _is_known(path))


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGES + VIDEOS and not path.name.startswith('.')


def _target(path: Path) -> Path:
    return path.with_suffix('.mp4' if path.suffix.lower() in VIDEOS else '.png')
