"""A segmentor's checkpoint for exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import pspnet, pspnet_config
from mmengine.config import Config

from repvgg_mm import load_strictly
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.openmmlab.model import build_model


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
