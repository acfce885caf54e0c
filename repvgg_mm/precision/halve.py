"""From an engine in float32 to one in fp16 that keeps its metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..engine.description import Description, Half, write_description
from ..engine.engine import Engine
from ..engine.evaluate import evaluate
from ..errors import UserError
from ..openmmlab.data import check_dataset
from .calibration import calibration_images
from .half import after_last_convolutions, leave_range, to_half
from .metric import ROUNDING, headline, validation_config

RANGE_IMAGES = 8  # of the calibration images: every value of the graph is looked at
Progress = Callable[[str], None]


def halve_engine(
    cfg: Config,
    path: Path,
    model: object,
    description: Description,
    random_images: Sequence[np.ndarray],
    *,
    io_dtype: str,
    calib_images: int,
    max_drop: float,
    progress: Progress,
) -> Description:
    """Replace the float32 ONNX engine at `path` by one in float16, with its metric where there are validation data.

    Operators whose numbers leave float16's range on training images stay in float32, and so does a detector's
    decoding of boxes: from 1024 pixels on, neighbours in float16 are a pixel apart.

    Args:
        model: the onnx.ModelProto that the engine was made of; it is not changed.
        random_images: for the ranges where the config has no training data.
        io_dtype: of inputs and outputs that were float32: 'float32' or 'float16'.
        max_drop: points of mIoU, or of mAP x 100.

    Returns:
        The description of the engine in fp16, with what was found under `half`.

    Raises:
        UserError: the images do not fit the engine, or the metric is not kept.
    """
    has_training, has_validation = (_has_data(cfg, split) for split in ('train', 'val'))
    images = random_images
    if has_training:
        progress('Preparing training images')
        images = calibration_images(cfg, Engine(path), min(RANGE_IMAGES, calib_images))

    progress(f'Looking for numbers beyond float16 on {len(images)} {"training" if has_training else "random"} images')
    beyond = leave_range(model, images)
    half = Half(beyond, len(images), has_training)
    if has_validation:
        progress('Measuring the engine in float32 on the validation set')
        name, expected = headline(evaluate(validation_config(cfg), Engine(path)))
        half = replace(half, metric=name, metric_float32=expected)

    float32 = [*beyond, *after_last_convolutions(model)] if description.task == 'detection' else beyond
    path.write_bytes(to_half(model, float32, io_dtype).SerializeToString())
    wanted = description.input
    if wanted.dtype == 'float32':
        wanted = replace(wanted, dtype=io_dtype)
    description = write_description(path, replace(description, input=wanted, half=half))

    if has_validation:
        progress('Measuring the engine in fp16 on the validation set')
        _, found = headline(evaluate(validation_config(cfg), Engine(path)))
        half = replace(half, metric_half=found, drop=round(expected - found, 4))
        _check_drop(half, max_drop)
    return write_description(path, replace(description, half=half))


def _has_data(cfg: Config, split: str) -> bool:
    if not cfg.get(f'{split}_dataloader'):
        return False
    try:
        check_dataset(cfg, split)
    except UserError:
        return False
    return True


def _check_drop(half: Half, max_drop: float) -> None:
    if half.drop > max_drop + ROUNDING:
        raise UserError(
            f'An engine in fp16 may lose {max_drop:g} points of {half.metric} (--max-drop), and this one reached '
            f'{half.metric_half:.2f} instead of {half.metric_float32:.2f}. Nothing was written: use --precision fp32, '
            'try more --calib-images, or allow more with --max-drop.')
