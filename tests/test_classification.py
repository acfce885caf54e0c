"""mmpretrain's classifier on RepVGG: trains, tests and converts on a folder of images; its weights start a PSPNet."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from helpers import pspnet_config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from tool_runs import metric, run_peer, run_tool

from repvgg_mm import read_checkpoint
from repvgg_mm.demo.shapes import CLASSES, make_shape_folders
from repvgg_mm.files.checkpoint import use_safe_reader

pytestmark = pytest.mark.stack
CONFIG = 'configs/classify_repvgg_a0_shapes.py'


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    return make_shape_folders(tmp_path_factory.mktemp('shapes'), num_train=4, num_val=2, size=32)


def small(folders: Path) -> list[str]:
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']
    for split in ('train', 'val', 'test'):
        options += [f'{split}_dataloader.dataset.data_root={folders}', f'{split}_dataloader.num_workers=0',
                    f'{split}_dataloader.persistent_workers=False']
    return ['--cfg-options', *options]


@pytest.fixture(scope='module')
def trained(folders, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('work')
    run_peer('tools/train.py', CONFIG, '--work-dir', work_dir, *small(folders))
    return work_dir / 'epoch_1.pth'


def test_both_forms_have_the_same_accuracy(trained, folders, tmp_path):
    run_peer('tools/test.py', CONFIG, trained, '--work-dir', tmp_path / 'a', *small(folders))
    run_peer('tools/convert_whole.py', CONFIG, trained, '--out', tmp_path / 'deploy', '--shape', 32, 32,
             *small(folders))
    run_peer('tools/test.py', tmp_path / 'deploy' / 'deploy.py', tmp_path / 'deploy' / 'deploy.pth',
             '--work-dir', tmp_path / 'b', '--out', tmp_path / 'predictions.pkl',
             '--show-dir', tmp_path / 'pictures')
    assert metric(tmp_path / 'a', 'accuracy/top1') == metric(tmp_path / 'b', 'accuracy/top1')
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0
    assert len([*(tmp_path / 'pictures').rglob('*.png')]) == len([*folders.rglob('val/*/*.jpg')])


@pytest.mark.parametrize('prefix', [dict(prefix='backbone.'), {}])
def test_its_weights_start_a_segmentor(trained, prefix):
    model = MODELS.build(pspnet_config('A0', init_cfg=dict(type='Pretrained', checkpoint=str(trained), **prefix)))
    saved = read_checkpoint(trained)['state_dict']
    schemes = dict(CheckpointLoader._schemes)
    use_safe_reader()  # as every tool does; mmengine 0.10.7's own reader cannot read a Runner's file
    try:
        model.init_weights()
    finally:
        CheckpointLoader._schemes = schemes
    tensors = model.backbone.state_dict()
    assert len(tensors) > 300
    torch.testing.assert_close(
        dict(tensors), {name: saved[f'backbone.{name}'] for name in tensors}, rtol=0, atol=0)


def test_without_the_extra_the_message_names_it(folders, tmp_path):
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, *small(folders), check=False)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'This config is for mmpretrain, which cannot be imported' in result.stderr
    assert "'.[openmmlab-classification]', or '.[onedl-classification]'" in result.stderr


def test_a_torchvision_of_another_torch_is_named(folders, tmp_path):
    (tmp_path / 'mmpretrain').mkdir()
    (tmp_path / 'mmpretrain' / '__init__.py').write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')")  # what `import torchvision` raises then
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, *small(folders), check=False,
                      PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'torchvision::nms does not exist' in result.stderr
    assert 'the torchvision that belongs to your torch' in result.stderr


def test_masks_are_no_output_of_a_classifier(trained, folders, tmp_path):
    result = run_peer('tools/test.py', CONFIG, trained, '--out', tmp_path / 'folder', *small(folders), check=False)
    assert result.returncode == 1 and 'evaluates with Accuracy. Give --out a name in .pkl' in result.stderr


def test_weight_decay_of_the_recipe():
    found = json.loads(run_peer('tests/programs/classifier_optimizers.py').stdout.splitlines()[-1])
    assert sorted(found) == ['classify_repvgg_a0_imagenet.py', 'classify_repvgg_a0_shapes.py']
    for counts in found.values():
        assert counts == {
            'Conv2d.weight: 0.0001': 44, 'BatchNorm2d.weight: 0': 44, 'BatchNorm2d.bias: 0': 44,
            'identity.weight: 0': 17, 'identity.bias: 0': 17, 'Linear.weight: 0.0001': 1, 'Linear.bias: 0': 1}


def test_folders_of_shapes(folders, tmp_path):
    assert sorted(path.name for path in (folders / 'train').iterdir()) == sorted(CLASSES[1:])
    files = sorted(path.relative_to(folders) for path in folders.rglob('*.jpg'))
    assert len(files) == 5 * (4 + 2)
    assert cv2.imread(str(folders / files[0])).shape == (32, 32, 3)
    again = make_shape_folders(tmp_path, num_train=4, num_val=2, size=32)
    assert all((again / file).read_bytes() == (folders / file).read_bytes() for file in files)
