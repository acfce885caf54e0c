"""A kit, made by the command of a segmentor on generated images."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import Trained, trained_segmentor
from tool_runs import run_tool

from repvgg_mm.demo.shapes import make_shapes


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory) -> Trained:
    shapes = make_shapes(tmp_path_factory.mktemp('shapes'), num_train=6, num_val=5, size=64)
    trained = trained_segmentor(tmp_path_factory.mktemp('segmentor'), shapes)
    with trained.path.open('a') as file:
        file.write(f'\ntrain_dataloader = dict(dataset=dict(data_root={str(shapes)!r}))\n')
    return trained


@pytest.fixture(scope='session')
def kit(segmentor, tmp_path_factory) -> Path:
    """Of images with a preprocessing inside, and logits."""
    folder = tmp_path_factory.mktemp('kits')
    run_tool(
        'tools/export.py', segmentor.path, segmentor.checkpoint_file, '--out', folder / 'engine', '--preprocess',
        '--kit', folder / 'kit', '--calib-images', 3)
    return folder / 'kit'
