"""Predictions for images and videos of one's own, as data samples and as pictures."""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from mmengine.utils import ProgressBar
from PIL import Image

from ..errors import UnusableFile, UserError
from ..openmmlab.config import import_toolbox, read_config
from .drawing import Painter
from .image_model import ImageModel, load_image_model
from .media import Source, check_targets, find_sources, open_video, write_picture, write_video

KINDS = (str, PathLike, np.ndarray)  # of images
SECONDS_BEFORE_BAR = 2  # a few images need no progress bar


class Picture(np.ndarray):
    """An RGB array (H, W, 3) of uint8 that a notebook shows as the picture it is."""

    def _repr_png_(self) -> bytes | None:
        if self.dtype != np.uint8 or self.ndim != 3:
            return None  # a part of one, or what was computed from one
        content = io.BytesIO()
        Image.fromarray(np.asarray(self)).save(content, 'PNG')
        return content.getvalue()


def predict(
    config: str | PathLike | Config,
    checkpoint: str | PathLike,
    images: str | PathLike | np.ndarray | Sequence,
    out: str | PathLike | None = None,
    *,
    draw: bool = False,
    score_thr: float = 0.3,
    device: str | None = None,
    overwrite: bool = False,
    keep_logits: bool = False,
    trust: bool = False,
) -> list[BaseDataElement] | tuple[list[BaseDataElement], list[np.ndarray]]:
    """Predict label maps or detections of images, as the toolbox's test does, with the model in deploy form.

    Args:
        config: of an mmseg segmentor or mmdet detector.
        checkpoint: in training form, which is fused first, or in deploy form; or an engine (`.onnx`, `.xml`, `.plan`).
        images: files, folders, glob patterns or BGR arrays (H, W, 3) of uint8; one, or a sequence of them.
        out: a folder for the pictures; those of arrays are `image_0.png` and so on.
        draw: return the pictures too, RGB arrays.
        score_thr: detections below this score are not drawn; the samples hold all of them.
        device: of a checkpoint a GPU by default if there is one; of an engine as `Engine` takes it.
        overwrite: replace pictures in `out`.
        keep_logits: leave the logits of a segmentor, the largest part by far, in its samples.
        trust: unpickle whatever the checkpoint contains, which can run any code in it.

    Returns:
        An mmseg `SegDataSample` or mmdet `DetDataSample` for each image, on the CPU; with `draw` the
        pictures as a second list, which a notebook shows: with a legend, small images enlarged so that
        text can be read.

    Raises:
        UserError: config, checkpoint, an image or `out` is not usable.
    """
    out = None if out is None else Path(out).expanduser()
    sources = _sources(images, out)
    if out is not None:
        targets = [source.target for _, source in sources]
        check_targets(out, targets, overwrite)

    model = _open_model(config, checkpoint, device, trust)
    paint = Painter(model.classes, model.palette, score_thr=score_thr)
    samples, pictures = [], []
    for array, source in _with_progress(sources):
        image = model.read(source.path) if array is None else array
        sample = model(image, source.path)
        samples.append(sample)

        if draw or out is not None:
            picture = paint(image, sample)
            if draw:
                pictures.append(picture.view(Picture))
            if out is not None:
                write_picture(out / source.target, picture)
        if 'seg_logits' in sample and not keep_logits:
            del sample.seg_logits
    return (samples, pictures) if draw else samples


def _with_progress(sources: Sequence) -> Iterator:
    """Them all, with a progress bar if they take long."""
    start, bar = time.perf_counter(), None
    for done, source in enumerate(sources):
        if bar is None and done and time.perf_counter() - start > SECONDS_BEFORE_BAR:
            bar = ProgressBar(len(sources), file=sys.stdout)
            bar.update(done)
        yield source
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.file.write('\n')


def predict_files(
    config: str | PathLike | Config,
    checkpoint: str | PathLike,
    patterns: Sequence[str | PathLike],
    out: str | PathLike,
    *,
    score_thr: float = 0.3,
    device: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> list[Path]:
    """Draw the predictions of images and videos into the folder `out`, with a progress bar.

    A file that cannot be read, or that the model cannot take, is left out. A video keeps its size and
    rate. Returns the pictures and videos written.

    Raises:
        UserError: nothing could be done; or, at the end, some files were left out.
    """
    out = Path(out).expanduser()
    sources = find_sources(patterns, out)
    check_targets(out, [source.target for source in sources], overwrite)

    model = _open_model(config, checkpoint, device, trust)
    paint = Painter(model.classes, model.palette, score_thr=score_thr)
    paint_frame = Painter(model.classes, model.palette, score_thr=score_thr, same_size=True)
    steps = sum(_length(source) for source in sources)
    bar = ProgressBar(steps)

    written, complaints = [], []
    for source in sources:
        target = out / source.target
        try:
            if source.is_video:
                complaints += _draw_video(model, paint_frame, source, target, bar)
            else:
                image = model.read(source.path)
                sample = model(image, source.path)
                write_picture(target, paint(image, sample))
                bar.update()
        except UnusableFile as error:
            complaints.append(str(error))
        else:
            written.append(target)
    bar.file.write('\n')

    if complaints:
        count = f'Of {len(sources)} files {len(written)} are drawn in {out}, but:'
        raise UserError('\n'.join([count, *complaints]))
    return written


def _open_model(
    config: str | PathLike | Config, checkpoint: str | PathLike, device: str | None, trust: bool
) -> ImageModel:
    cfg = config if isinstance(config, Config) else read_config(config)
    import_toolbox(cfg)
    return load_image_model(cfg, checkpoint, device, trust=trust)


def _sources(images: object, out: Path | None) -> list[tuple[np.ndarray | None, Source]]:
    """Arrays; or None for files, which are read when their turn comes."""
    if isinstance(images, KINDS) or not isinstance(images, Iterable):
        images = [images]
    images = list(images)
    for item in images:
        if not isinstance(item, KINDS):
            raise UserError(
                f'Images are files or BGR arrays (H, W, 3) of uint8, got {type(item).__name__}. Convert '
                'it, for example with np.asarray(image)[..., ::-1] if it is RGB.')

    arrays = [item for item in images if isinstance(item, np.ndarray)]
    if not arrays:
        return [(None, source) for source in _files(images, out)]
    if len(arrays) != len(images):
        raise UserError(
            f'Images are arrays or files, and {len(arrays)} of {len(images)} are arrays. '
            'Read the files with cv2.imread, or predict twice.')

    sources = []
    for number, array in enumerate(arrays):
        name = f'image_{number}'
        sources.append((array, Source(Path(name), Path(f'{name}.png'))))
    return sources


def _files(images: list, out: Path | None) -> list[Source]:
    """Image files, each named once."""
    counts = Counter(map(str, images))
    name, count = counts.most_common(1)[0] if counts else ('', 0)
    if count > 1:
        raise UserError(f'Each image is predicted once, and {name} was named more than once. Name it once.')

    sources = find_sources(images, out)
    for source in sources:
        if source.is_video:
            raise UserError(
                f'Data samples are returned of images, and {source.path} is a video. Draw it with '
                'repvgg_mm.inference.predict.predict_files or tools/predict.py.')
    return sources


def _length(source: Source) -> int:
    """Steps of the progress bar."""
    if not source.is_video:
        return 1
    try:
        return max(1, open_video(source.path).frame_cnt)
    except UnusableFile:
        return 1


def _draw_video(model: ImageModel, paint: Painter, source: Source, target: Path, bar: ProgressBar) -> list[str]:
    """Write the drawn video; returns a complaint if it ends early."""
    video = open_video(source.path)

    def frames() -> Iterator[np.ndarray]:
        for number, frame in enumerate(video):
            sample = model(frame, f'{source.path}, frame {number},')
            yield paint(frame, sample)
            bar.update()

    count = write_video(target, frames(), video.fps, video.resolution)
    if count >= video.frame_cnt:
        return []
    complaint = (
        f'A video holds the frames that its header announces, and of {source.path} only {count} of '
        f'{video.frame_cnt} can be read. {target} ends there: copy the video again if it should be longer.')
    return [complaint]
