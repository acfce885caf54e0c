"""What quantising chooses its ranges from: what a test would feed the engine, from training images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from engines import quiet
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from repvgg_mm import UserError
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.engine import Engine
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import export, prepare
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.data import training_set
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.precision.calibration import calibration_images
from repvgg_mm.precision.half import to_half

pytestmark = pytest.mark.stack
SIZE = 48


def engine_of(cfg: Config, checkpoint: Checkpoint, folder: Path, target: Target) -> Engine:
    prepared = prepare(cfg, checkpoint, target, progress=quiet)
    path, _ = write_engine(prepared.graph, prepared.description, folder)
    return Engine(path)


@pytest.mark.parametrize('preprocess', [False, True])
def test_calibration_images_are_those_of_a_test(preprocess, run, cfg, checkpoint, tmp_path):
    target = Target('openvino', shape=(SIZE, SIZE), preprocess=preprocess)
    engine = engine_of(cfg, checkpoint, tmp_path, target)
    found = calibration_images(cfg, engine, 3)
    files = sorted((run / 'shapes' / 'images' / 'train').iterdir())
    for image, file in zip(found, (files[0], files[3], files[6]), strict=True):
        expected = cv2.imread(str(file))[None]
        if not preprocess:
            mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
            expected = ((expected[..., ::-1] - mean) / std).transpose(0, 3, 1, 2)
        assert image.dtype == expected.dtype
        np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-5)
    assert len(calibration_images(cfg, engine, 50)) == 9


def test_one_window_of_each_image(cfg, checkpoint, tmp_path):
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    engine = engine_of(cfg, checkpoint, tmp_path, Target('openvino', shape=(32, 32)))
    found = calibration_images(cfg, engine, 2)
    model = build_model(cfg)
    whole = [model.data_preprocessor(pseudo_collate([training_set(cfg)[i]]), False)['inputs'].numpy() for i in (0, 4)]
    np.testing.assert_array_equal(found[0], whole[0][:, :, :32, :32])
    np.testing.assert_array_equal(found[1], whole[1][:, :, :32, 16:48])


def test_a_damaged_training_image(run, cfg, checkpoint, tmp_path):
    shutil.copytree(run / 'shapes', tmp_path / 'shapes')
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'shapes')
    sorted((tmp_path / 'shapes/images/train').iterdir())[2].write_bytes(b'')
    target = Target('openvino', 'int8', (SIZE, SIZE), calib_images=4)
    with pytest.raises(UserError, match=r'images of the training set, and number 2 cannot be read \(.*Check its files'):
        export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']


def test_a_config_without_training_data(cfg):
    cfg.pop('train_dataloader')
    with pytest.raises(UserError, match=r'images of the train_dataloader .* lacks the first\. Add it'):
        training_set(cfg)


def test_an_engine_in_float16_is_fed_float16_and_stays_as_it_is(cfg, checkpoint, tmp_path):
    prepared = prepare(cfg, checkpoint, Target(shape=(SIZE, SIZE)), progress=quiet)
    described = replace(prepared.description, input=replace(prepared.description.input, dtype='float16'))
    path, _ = write_engine(to_half(prepared.graph, [], 'float16'), described, tmp_path)
    engine = Engine(path)
    before = cfg.pretty_text, engine.description
    image, = calibration_images(cfg, engine, 1)
    assert image.dtype == np.float16
    assert (cfg.pretty_text, engine.description) == before


def test_an_engine_of_another_size_than_a_test_feeds(cfg, checkpoint, tmp_path):
    engine = engine_of(cfg, checkpoint, tmp_path, Target('openvino', shape=(32, 32)))
    with pytest.raises(UserError, match=r'takes float32 images of \(1, 3, 32, 32\) .*got float32 of \(1, 3, 48, 48\)'):
        calibration_images(cfg, engine, 1)
