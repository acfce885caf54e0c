"""The detector configs: they build, train a step and convert; the tools run them on real images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import two_stage_config
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from tool_runs import ROOT, derived_config, iterations, metric, run_tool, small_data

from repvgg_mm import compare_models, whole_model_convert
from repvgg_mm.archs import get_arch
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.config import deploy_config
from repvgg_mm.openmmlab.model import build_model, replace_sync_bn

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


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=6, num_val=2, size=64)


def train_convert_test(config: object, folder: Path, options: list[str]) -> str:
    """The tools one after the other; both forms find the same boxes. Returns the report of the conversion."""
    run_tool('tools/train.py', config, '--work-dir', folder / 'train', '--cfg-options', *options, *iterations(2))
    checkpoint = folder / 'train' / 'iter_2.pth'
    result = run_tool('tools/convert_whole.py', config, checkpoint, '--out', folder / 'deploy', '--shape', 64, 64,
                      '--verbose', '--cfg-options', *options)
    assert f'Wrote {folder / "deploy" / "deploy.pth"}' in result.stdout
    found = {}
    for name, pair in dict(training=[config, checkpoint],
                           deploy=[folder / 'deploy/deploy.py', folder / 'deploy/deploy.pth']).items():
        run_tool('tools/test.py', *pair, '--work-dir', folder / name, '--out', folder / f'{name}.pkl',
                 '--cfg-options', *options)
        found[name] = metric(folder / name, 'coco/bbox_mAP')
    assert found['training'] == pytest.approx(found['deploy'], abs=1e-3)
    return result.stdout


def test_the_tools_on_a_two_stage_detector(shapes, tmp_path):
    config = derived_config(
        tmp_path / 'fasterrcnn.py', f"model = dict(_delete_=True, **{two_stage_config('fasterrcnn')})\n"
        "custom_hooks = [dict(type='RepVGGConvertHook', shape=(64, 64))]", 'configs/retinanet_repvgg_a0_shapes.py')
    options = [*small_boxes(shapes), 'model.test_cfg.rcnn.score_thr=0.0']
    report = train_convert_test(config, tmp_path, options)
    assert "output['roi_head'][1]: relative error" in report and 'fixed proposals' in report
    assert (tmp_path / 'train' / 'iter_2_deploy.pth').is_file()
    result = run_tool('tools/benchmark.py', tmp_path / 'fasterrcnn.py', '--shape', 64, 64, '--rounds', 2,
                      '--work', 'forward', 'norm_eval step')
    assert result.stdout.count('fasterrcnn, deploy form') == 2


def test_the_tools_on_the_shapes(shapes, tmp_path):
    options = [*small_boxes(shapes), 'model.test_cfg.score_thr=0.0']
    train_convert_test('configs/retinanet_repvgg_a0_shapes.py', tmp_path, options)


def small_boxes(root: Path) -> list[str]:
    return [*small_data(root), *(f'{split}_evaluator.ann_file={root / "annotations/val.json"}'
                                 for split in ('val', 'test'))]


@pytest.mark.skipif(not DATA.is_dir(), reason=f'no real data: {DATA} is missing, set REPVGG_MM_DATA')
def test_the_tools_on_real_images(tmp_path):
    options = [f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
               for option in ('num_workers=0', 'persistent_workers=False')]
    train_convert_test('configs/retinanet_repvgg_a0_bccd.py', tmp_path, [
        *options, 'train_dataloader.batch_size=2', 'model.test_cfg.score_thr=0.0'])
