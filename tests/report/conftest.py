"""Generated images, and a segmentor in both forms: made once for all these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from reports import config_of, write_checkpoint_of, write_config

from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import Conversion, convert_checkpoint
from repvgg_mm.deploy.costs import Costs, measure_costs


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=5, size=64)


@pytest.fixture(scope='session')
def converted(tmp_path_factory, shapes) -> tuple[Conversion, Costs, Config]:
    """Conversion, costs and config of a segmentor, whose data are there."""
    path = write_config(tmp_path_factory.mktemp('config'), 'segmentor')
    cfg = config_of(path, shapes)
    checkpoint = Checkpoint.read(write_checkpoint_of(path))
    conversion = convert_checkpoint(cfg, checkpoint, (64, 64))
    return conversion, measure_costs(conversion), cfg
