"""`tools/train.py`: a run goes on where it ended, and what it refuses before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tool_runs import CONFIG, assert_refused, iterations, run_tool, small_data

from repvgg_mm import read_checkpoint

pytestmark = pytest.mark.stack


def test_resumed_run_ends(ema_config, trained, shapes):
    result = run_tool('tools/train.py', ema_config, '--work-dir', trained, '--resume', '--verbose', '--cfg-options',
                      *small_data(shapes), *iterations(6))
    assert 'resumed epoch: 0, iter: 4' in result.stdout + result.stderr
    assert (trained / 'iter_6.pth').is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason='on a GPU --amp is float16')
def test_mixed_precision_on_a_cpu(shapes, tmp_path):
    run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--amp', '--cfg-options', *small_data(shapes),
             *iterations(2))
    assert Config.fromfile(tmp_path / Path(CONFIG).name).optim_wrapper.type == 'BFloat16OptimWrapper'
    weights = read_checkpoint(tmp_path / 'iter_2.pth')['state_dict']
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--amp-dtype', 'float16', check=False)
    assert_refused(result, 'float16 needs a GPU', '--amp alone')


@pytest.mark.parametrize(('config', 'folder'), [
    ('pspnet_repvgg_b2.py', 'data/cityscapes'), ('pspnet_repvgg_a2_ade20k.py', 'data/ade/ADEChallengeData2016'),
    ('pspnet_repvgg_b0_voc12aug.py', 'data/VOCdevkit/VOC2012')])
def test_absent_dataset(config, folder, tmp_path):
    result = run_tool('tools/train.py', f'configs/{config}', '--work-dir', tmp_path, check=False,
                      REPVGG_MM_DATA=str(tmp_path / 'data'))
    assert_refused(result, folder, 'docs/train.md, section "Datasets"')


def test_absent_config_and_base_config(tmp_path):
    assert_refused(run_tool('tools/train.py', 'configs/pspnet.py', check=False), 'configs/pspnet.py is missing')
    assert_refused(run_tool('tools/train.py', 'configs', check=False), 'configs is a folder')
    base = 'configs/_base_/datasets/shapes.py'
    assert_refused(run_tool('tools/train.py', base, check=False), 'A config describes a model')


def test_resume_without_checkpoint(shapes, tmp_path):
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--resume', check=False)
    assert_refused(result, 'goes on from a checkpoint')


def test_a_deploy_form_from_nothing(shapes, tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.deploy_pair = 'of a conversion'
    cfg.dump(tmp_path / 'deploy.py')
    options = ['--work-dir', tmp_path / 'work', '--cfg-options', *small_data(shapes), *iterations(2)]
    result = run_tool('tools/train.py', tmp_path / 'deploy.py', *options, check=False)
    assert_refused(result, 'The training form is trained, and', 'load_from=deploy.pth')
    assert not (tmp_path / 'work').exists()


def test_fewer_classes_than_the_data_have(shapes, tmp_path):
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', *small_data(shapes),
                      *iterations(2), 'model.decode_head.num_classes=3', check=False)
    assert_refused(result, 'has 6 (background, disk, ring, ...) where model.decode_head.num_classes is 3')
    assert 'step 1' not in result.stdout


def test_a_work_dir_that_cannot_be_written_to(shapes):
    result = run_tool('tools/train.py', CONFIG, '--work-dir', '/proc/work', '--cfg-options', *small_data(shapes),
                      *iterations(2), check=False)
    assert_refused(result, '/proc/work cannot be written to', 'Choose another folder')
