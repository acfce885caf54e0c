"""The same chain on real images, where REPVGG_MM_DATA names a folder that holds CamVid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tool_runs import iterations, metric, run_tool

CONFIG = 'configs/pspnet_repvgg_a0_camvid.py'
# Three steps at the recipe's 3e-3 can leave a network that amplifies float32's rounding past the proof's 1e-5.
FEW = ['randomness.seed=0', 'optim_wrapper.optimizer.lr=3e-4', 'train_dataloader.batch_size=2',
       'val_dataloader.dataset.indices=6', 'test_dataloader.dataset.indices=6',
       *(f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
         for option in ('num_workers=0', 'persistent_workers=False'))]


@pytest.mark.skipif(not (Path(os.environ.get('REPVGG_MM_DATA', 'data')) / 'camvid').is_dir(),
                    reason='CamVid is in no folder that REPVGG_MM_DATA names, nor in data/')
def test_camvid_has_the_same_metric_in_both_forms(tmp_path):
    run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path / 'train', '--cfg-options', *FEW, *iterations(3))
    checkpoint = tmp_path / 'train' / 'iter_3.pth'
    run_tool('tools/convert_whole.py', CONFIG, checkpoint, '--out', tmp_path / 'out')
    run_tool('tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'training', '--cfg-options', *FEW)
    run_tool('tools/test.py', tmp_path / 'out' / 'deploy.py', tmp_path / 'out' / 'deploy.pth',
             '--work-dir', tmp_path / 'deploy', '--cfg-options', *FEW)
    assert metric(tmp_path / 'training', 'aAcc') > 0
    for name in ('mIoU', 'aAcc'):
        assert metric(tmp_path / 'deploy', name) == pytest.approx(metric(tmp_path / 'training', name), abs=0.01)
