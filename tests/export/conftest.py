"""A segmentor's checkpoint for exports, and a folder with data, config and checkpoint for quantising."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import TINY, pspnet, pspnet_config, randomise_norms
from mmengine.config import Config
from tool_runs import derived_config

from repvgg_mm import load_strictly
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.openmmlab.model import build_model

SIZE = 48  # of the generated images


@pytest.fixture
def segmentor_cfg() -> Config:
    return Config(dict(model=pspnet_config(), default_scope='mmseg'))


@pytest.fixture(scope='session')
def segmentor_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('checkpoint') / 'pspnet.pth'
    meta = dict(dataset_meta=dict(classes=('sky', 'road', 'tree')))
    torch.save(dict(state_dict=pspnet().state_dict(), meta=meta), path)
    return path


@pytest.fixture
def segmentor_checkpoint(segmentor_file) -> Checkpoint:
    return Checkpoint.read(segmentor_file)


@pytest.fixture
def logits_of(segmentor_cfg, segmentor_checkpoint):
    """The training form's own logits, branch by branch nothing but mmseg's code."""
    model = build_model(segmentor_cfg).eval()
    load_strictly(model, segmentor_checkpoint.content, 'checkpoint')

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.encode_decode(images, [dict(img_shape=tuple(images.shape[2:]))] * len(images))
    return logits


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
