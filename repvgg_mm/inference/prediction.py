"""Predictions for images and videos of one's own, as data samples and as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from mmengine.utils import ProgressBar

from ..errors import UnusableFile, UserError
from ..openmmlab.config import import_toolbox, read_config
from .drawing import Painter
from .media import Source, check_targets, find_sources, open_video, write_picture, write_video
from .predictor import Predictor, predictor

KINDS = (str, PathLike, np.ndarray)  # of images


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
        checkpoint: in training form, which is fused first, or in deploy form; or an engine (`.onnx`, `.xml`).
        images: files, folders, glob patterns or BGR arrays (H, W, 3) of uint8; one, or a sequence of them.
        out: a folder for the pictures; those of arrays are `image_0.png` and so on.
        draw: return the pictures too, RGB arrays.
        score_thr: detections below this score are not drawn; the samples hold all of them.
        device: a GPU by default if there is one.
        overwrite: replace pictures in `out`.
        keep_logits: leave the logits of a segmentor, the largest part by far, in its samples.
        trust: unpickle whatever the checkpoint contains, which can run any code in it.

    Returns:
        An mmseg `SegDataSample` or mmdet `DetDataSample` for each image, on the CPU; with `draw` the
        pictures as a second list: with a legend, small images enlarged so that text can be read.

    Raises:
        UserError: config, checkpoint, an image or `out` is not usable.
    """
    out = None if out is None else Path(out).expanduser()
    sources = _sources(images, out)
    if out is not None:
        check_targets(out, [source.target for _, source in sources], overwrite)
    model = _predictor(config, checkpoint, device, trust)
    paint = Painter(model.classes, model.palette, score_thr=score_thr)
    samples, pictures = [], []
    for array, source in sources:
        image = model.read(source.path) if array is None else array
        sample = model(image, source.path)
        if draw or out is not None:
            picture = paint(image, sample)
            if draw:
                pictures.append(picture)
            if out is not None:
                write_picture(out / source.target, picture)
        if 'seg_logits' in sample and not keep_logits:
            del sample.seg_logits
        samples.append(sample)
    return (samples, pictures) if draw else samples


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
    model = _predictor(config, checkpoint, device, trust)
    paint = Painter(model.classes, model.palette, score_thr=score_thr)
    paint_frame = Painter(model.classes, model.palette, score_thr=score_thr, same_size=True)
    bar = ProgressBar(sum(map(_length, sources)))
    written, complaints = [], []
    for source in sources:
        try:
            if source.is_video:
                complaints += _draw_video(model, paint_frame, source, out / source.target, bar)
            else:
                image = model.read(source.path)
                write_picture(out / source.target, paint(image, model(image, source.path)))
                bar.update()
        except UnusableFile as error:
            complaints.append(str(error))
        else:
            written.append(out / source.target)
    print()
    if complaints:
        raise UserError('\n'.join([f'Of {len(sources)} files {len(written)} are drawn in {out}, but:', *complaints]))
    return written


def _predictor(config: str | PathLike | Config, checkpoint: str | PathLike, device: str | None,
               trust: bool) -> Predictor:
    cfg = config if isinstance(config, Config) else read_config(config)
    import_toolbox(cfg)
    return predictor(cfg, checkpoint, device, trust=trust)


def _sources(images: object, out: Path | None) -> list[tuple[np.ndarray | None, Source]]:
    """Arrays; or None for files, which are read when their turn comes."""
    images = [images] if isinstance(images, KINDS) or not isinstance(images, Iterable) else list(images)
    strange = [item for item in images if not isinstance(item, KINDS)]
    if strange:
        raise UserError(f'Images are files or BGR arrays (H, W, 3) of uint8, got {type(strange[0]).__name__}. Convert '
                        'it, for example with np.asarray(image)[..., ::-1] if it is RGB.')
    arrays = [item for item in images if isinstance(item, np.ndarray)]
    if arrays:
        if len(arrays) != len(images):
            raise UserError(f'Images are arrays or files, and {len(arrays)} of {len(images)} are arrays. '
                            'Read the files with cv2.imread, or predict twice.')
        names = [f'image_{number}' for number in range(len(arrays))]
        return [(array, Source(Path(name), Path(f'{name}.png'))) for array, name in zip(arrays, names)]
    twice = [item for item, count in Counter(map(str, images)).items() if count > 1]
    if twice:
        raise UserError(f'Each image is predicted once, and {twice[0]} was named more than once. Name it once.')
    sources = find_sources(images, out)
    videos = [source.path for source in sources if source.is_video]
    if videos:
        raise UserError(f'Data samples are returned of images, and {videos[0]} is a video. Draw it with '
                        'repvgg_mm.prediction.predict_files or tools/predict.py.')
    return [(None, source) for source in sources]


def _length(source: Source) -> int:
    """Steps of the progress bar."""
    if not source.is_video:
        return 1
    try:
        return max(1, open_video(source.path).frame_cnt)
    except UnusableFile:
        return 1


def _draw_video(model: Predictor, paint: Painter, source: Source, target: Path, bar: ProgressBar) -> list[str]:
    """Write the drawn video; returns a complaint if it ends early."""
    video = open_video(source.path)

    def frames() -> Iterator[np.ndarray]:
        for number, frame in enumerate(video):
            yield paint(frame, model(frame, f'{source.path}, frame {number},'))
            bar.update()

    count = write_video(target, frames(), video.fps, video.resolution)
    if count >= video.frame_cnt:
        return []
    return [f'A video holds the frames that its header announces, and of {source.path} only {count} of '
            f'{video.frame_cnt} can be read. {target} ends there: copy the video again if it should be longer.']
