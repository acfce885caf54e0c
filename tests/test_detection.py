"""The detector configs: they build, train a step and convert; the tools run them on real images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from tool_runs import ROOT, iterations, metric, run_tool

from repvgg_mm import compare_models, whole_model_convert
from repvgg_mm.archs import get_arch
from repvgg_mm.runner import build_model, deploy_config, replace_sync_bn

DETECTORS = ('retinanet', 'atss', 'gfl', 'fcos', 'fasterrcnn', 'maskrcnn', 'tood', 'rtmdet')
CONFIGS = sorted(path.name for name in DETECTORS for path in (ROOT / 'configs').glob(f'{name}_*.py'))
DATA = Path(os.environ.get('REPVGG_MM_DATA', ROOT / 'data')) / 'bccd'

pytestmark = pytest.mark.stack


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_a_step_and_converts(name):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info('epoch', 0)  # a Runner does; TOOD reads it
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.model.backbone.pop('init_cfg', None)
    replace_sync_bn(cfg)
    if 'rpn_head' in cfg.model:
        cfg.model.test_cfg.rpn.max_per_img = 12
    model = build_model(cfg).train()
    widths = get_arch(cfg.model.backbone.arch).stage_channels
    assert model.neck.in_channels == [widths[i] for i in model.backbone.out_indices]
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    boxes = InstanceData(
        bboxes=torch.tensor([[8., 8., 60., 50.], [20., 70., 90., 120.]]), labels=torch.tensor([0, 2]))
    if 'mask_head' in cfg.model.get('roi_head', {}):
        boxes.masks = BitmapMasks(np.stack([np.tri(128, 128, k, np.uint8) for k in (0, 20)]), 128, 128)
    samples = [DetDataSample(gt_instances=boxes, metainfo=dict(img_shape=(128, 128))) for _ in range(2)]
    batch = dict(inputs=[torch.randint(256, (3, 128, 128), dtype=torch.uint8) for _ in range(2)], data_samples=samples)
    before = model.backbone.stage_4[0].branch_3x3.conv.weight.detach().clone()
    losses = model.train_step(batch, optimizer)
    assert torch.isfinite(losses['loss']) and ('loss_mask' in losses) == name.startswith('maskrcnn')
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys['branch_norm.weight'].decay_mult == 1
    assert not torch.equal(before, model.backbone.stage_4[0].branch_3x3.conv.weight)

    model = model.double()
    deploy = whole_model_convert(model)
    errors = compare_models(model, deploy, torch.randn(1, 3, 128, 160, dtype=torch.float64))
    if name.startswith('tood'):  # mmdet computes its boxes in float32
        assert max(error for output, error in errors.items() if output.startswith('output[1]')) <= 1e-6
        errors = {output: error for output, error in errors.items() if not output.startswith('output[1]')}
    assert max(errors.values()) <= 1e-10
    with torch.device('meta'):
        rebuilt = build_model(deploy_config(cfg))
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in deploy.state_dict().items()}


@pytest.mark.skipif(not DATA.is_dir(), reason=f'no real data: {DATA} is missing, set REPVGG_MM_DATA')
def test_the_tools_on_real_images(tmp_path):
    config = 'configs/retinanet_repvgg_a0_bccd.py'
    options = [f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
               for option in ('num_workers=0', 'persistent_workers=False')]
    run_tool('tools/train.py', config, '--work-dir', tmp_path / 'train', '--cfg-options', *iterations(2), *options,
             'train_dataloader.batch_size=2')
    checkpoint = tmp_path / 'train' / 'iter_2.pth'
    run_tool('tools/convert_whole.py', config, checkpoint, '--out', tmp_path / 'deploy', '--shape', '128', '160')
    options += ['model.test_cfg.score_thr=0.0']
    for name, pair in dict(training=[config, checkpoint],
                           deploy=[tmp_path / 'deploy/deploy.py', tmp_path / 'deploy/deploy.pth']).items():
        run_tool('tools/test.py', *pair, '--work-dir', tmp_path / name, '--cfg-options', *options)
    found = [metric(tmp_path / name, 'coco/bbox_mAP') for name in ('training', 'deploy')]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
