"""A folder with data, config and checkpoint for engines of fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import TINY, randomise_norms
from mmengine.config import Config
from tool_runs import derived_config

from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.openmmlab.model import build_model

SIZE = 48  # of the generated images


def config_text(data: Path) -> str:
    loaders = '\n'.join(f"{split}_dataloader = dict(num_workers=0, persistent_workers=False, "
                        f"dataset=dict(data_root='{data}'))" for split in ('train', 'val', 'test'))
    return f"""
model = dict(
    data_preprocessor=dict(size=({SIZE}, {SIZE})),
    backbone=dict(arch=dict(_delete_=True, **{TINY})),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
{loaders}
"""


@pytest.fixture(scope='session')
def run(tmp_path_factory) -> Path:
    """A folder with generated data, a config and a checkpoint of a random network."""
    folder = tmp_path_factory.mktemp('quantise')
    make_shapes(folder / 'shapes', num_train=9, num_val=3, size=SIZE)
    path = derived_config(folder / 'config.py', config_text(folder / 'shapes'))
    torch.manual_seed(0)
    model = randomise_norms(build_model(Config.fromfile(path)))
    torch.save(dict(state_dict=model.state_dict()), folder / 'checkpoint.pth')
    return folder


@pytest.fixture
def cfg(run) -> Config:
    return Config.fromfile(run / 'config.py')


@pytest.fixture
def checkpoint(run) -> Checkpoint:
    return Checkpoint.read(run / 'checkpoint.pth')
