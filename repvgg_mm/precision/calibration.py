"""What an engine is fed in tests, from real training images: quantisation chooses its ranges from these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.utils import track_iter_progress

from ..engine.engine import Engine
from ..engine.model import EngineModel
from ..errors import UserError, first_line
from ..openmmlab.data import training_set


def calibration_images(cfg: Config, engine: Engine, count: int) -> list[np.ndarray]:
    """Inputs of `engine` for `count` training images, evenly spread, or for all of a smaller training set.

    Raises:
        UserError: the config has no training data or it is missing, or the engine does
            not take such images.
    """
    dataset = training_set(cfg)
    return inputs_of(cfg, engine, dataset, evenly_spread(len(dataset), count))


def evenly_spread(size: int, count: int) -> list[int]:
    """`count` of the numbers below `size`, or all of them."""
    count = min(count, size)
    return [i * size // count for i in range(count)]


def picture_names(dataset: BaseDataset, chosen: Sequence[int]) -> list[str]:
    """Of files, without their folders."""
    return [Path(dataset.get_data_info(index)['img_path']).name for index in chosen]


def inputs_of(cfg: Config, engine: Engine, dataset: BaseDataset, chosen: Sequence[int]) -> list[np.ndarray]:
    """Inputs of `engine` for chosen images of `dataset`, as the config's tests would prepare them.

    What the engine is fed is recorded while it stands in the toolbox's
    own inference, so padding, normalisation and the windows of slide inference are those of a test; of an
    image with several windows one is taken, the first of the first image, the second of the second.

    Raises:
        UserError: an image cannot be read, or the engine does not take such images.
    """
    recorder = _Recorder(engine)
    tester = EngineModel(cfg, recorder)

    images = []
    for turn, index in enumerate(track_iter_progress(chosen)):
        recorder.calls = []
        sample = _read(dataset, index)
        tester.test_step(pseudo_collate([sample]))
        images.append(recorder.calls[turn % len(recorder.calls)])
    return images


def _read(dataset: BaseDataset, index: int) -> dict:
    try:
        return dataset[index]
    except Exception as error:  # what decoders and datasets raise depends on the damage
        raise UserError(
            f'Quantising reads images of the training set, and number {index} cannot be read '
            f'({first_line(error)}). Check its files, or take it out of the list.') from None


class _Recorder(Engine):
    """An engine that keeps a copy of each input since `calls` was last emptied, of the type that the file takes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.path = engine.path
        self.description = engine.description
        self.calls: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.engine(images)
        self.calls.append(np.array(images, self.description.input.dtype))
        return outputs
