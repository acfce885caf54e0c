"""Every config in configs/: it builds, trains a step, converts, and decays what its recipe says."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import TRANSFORMS
from mmengine.structures import PixelData
from tool_runs import ROOT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from repvgg_mm import compare_models, fast_dilations, whole_model_convert
from repvgg_mm.block import named_blocks
from repvgg_mm.deploy.config import deploy_config
from repvgg_mm.openmmlab.model import build_model, replace_sync_bn

# The others: test_detection.py, test_classification.py.
SEGMENTORS = ('pspnet', 'upernet', 'deeplabv3plus', 'fcn', 'semfpn')
CONFIGS = sorted(path.name for name in SEGMENTORS for path in (ROOT / 'configs').glob(f'{name}_*.py'))

pytestmark = pytest.mark.stack


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.model.backbone.pop('init_cfg', None)  # as with --cfg-options model.backbone.init_cfg=None
    replace_sync_bn(cfg)
    return cfg


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_a_step_and_converts(name):
    from mmseg.structures import SegDataSample
    torch.manual_seed(0)
    cfg = load(name)
    cfg.model.data_preprocessor.size = (64, 64)
    model = build_model(cfg).train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    classes = cfg.model.decode_head.num_classes
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(classes, (1, 64, 64)))) for _ in range(2)]
    batch = dict(inputs=[torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)], data_samples=samples)
    before = model.backbone.stem.branch_3x3.conv.weight.detach().clone()
    losses = model.train_step(batch, optimizer)
    assert torch.isfinite(losses['loss'])
    assert not torch.equal(before, model.backbone.stem.branch_3x3.conv.weight)

    # In float64: the statistics of a first step do not fit one another, and cost float32 more than 1e-5.
    model = model.double()
    deploy = whole_model_convert(model)
    errors = compare_models(model, deploy, torch.randn(1, 3, 64, 96, dtype=torch.float64))
    assert max(errors.values()) <= 1e-10
    with torch.device('meta'):
        rebuilt = build_model(deploy_config(cfg))
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in deploy.state_dict().items()}


@pytest.mark.parametrize('name', sorted(path.name for path in (ROOT / 'configs').glob('*.py')))
def test_opens_with_purpose_recipe_expectation_and_command(name):
    comments = []
    for line in (ROOT / 'configs' / name).read_text().splitlines():
        if not line.startswith('#'):
            break
        comments.append(line)
    assert [line.split(':')[0] for line in comments[1:4]] == ['# Recipe', '# Expected', '# Command']
    assert f'configs/{name}' in comments[3]
    assert any(word in comments[2] for word in ('published', 'measured'))


@pytest.mark.parametrize('name', CONFIGS)
def test_weight_decay_of_the_official_recipe(name):
    cfg = load(name)
    with torch.device('meta'):
        model = build_model(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    wd = cfg.optim_wrapper.optimizer.weight_decay
    assert wd > 0
    checked = 0
    for _, block in named_blocks(model.backbone):
        for norm in (block.branch_3x3.norm, block.branch_1x1.norm):
            assert decay[id(norm.weight)] == decay[id(norm.bias)] == 0
        assert decay[id(block.branch_3x3.conv.weight)] == decay[id(block.branch_1x1.conv.weight)] == wd
        if block.branch_norm is not None:
            checked += 1
            assert decay[id(block.branch_norm.weight)] == wd
            assert decay[id(block.branch_norm.bias)] == 0
    assert checked
    for module in model.decode_head.modules():
        if isinstance(module, nn.Conv2d):
            assert decay[id(module.weight)] == wd
            assert module.bias is None or decay[id(module.bias)] == 0
        elif isinstance(module, _BatchNorm):
            assert decay[id(module.weight)] == 0


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'fast' in name])
def test_fast_variant(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    assert cfg.model.backbone.dilations == fast_dilations(cfg.model.backbone.arch)
    with torch.device('meta'):
        blocks = [block.branch_3x3.conv.dilation[0] for _, block in named_blocks(build_model(load(name)))]
    assert blocks[-5:] == [2, 2, 2, 2, 4]
    assert set(blocks[:-5]) == {1}


def test_weights_are_named_where_the_recipe_finetunes():
    for name in CONFIGS:
        backbone = Config.fromfile(ROOT / 'configs' / name).model.backbone
        init_cfg = backbone.get('init_cfg')
        if 'camvid' in name or 'shapes' in name:
            assert init_cfg is None
        else:
            assert init_cfg.checkpoint.startswith('https://') and init_cfg.prefix == 'backbone.'
            assert f'/repvgg-{backbone.arch}_' in init_cfg.checkpoint


@pytest.mark.parametrize('name', ['pspnet_repvgg_a0_camvid.py', 'pspnet_repvgg_a2_ade20k.py', 'pspnet_repvgg_b2.py'])
def test_views_of_test_time_augmentation_lie_around_the_tested_size(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    image = np.zeros((1024, 2048, 3) if 'b2' in name else (360, 480, 3), np.uint8)

    def widths(transforms: list) -> list[int]:
        sizes = []
        for resizes in itertools.product(*(step for step in transforms if step[0].type == 'Resize')):
            results = dict(img=image, img_shape=image.shape[:2])
            for resize in resizes:
                results = TRANSFORMS.build(dict(resize, type='mmseg.Resize'))(results)
            sizes.append(results['img'].shape[1])
        return sizes

    tested, = widths([[step] for step in cfg.test_dataloader.dataset.pipeline])
    factors = (0.8, 1.0, 1.25) if 'camvid' in name else (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert widths(cfg.tta_pipeline[1].transforms) == pytest.approx([tested * factor for factor in factors], abs=1)


def test_every_base_is_used():
    configs = [*(ROOT / 'configs').rglob('*.py')]
    used = {Path(name).name for path in configs for name in re.findall(r"'([\w/]+\.py)'", path.read_text())}
    for path in configs:
        used |= {f'{name}.py' for name in re.findall(r'from \._base_\.(\w+) import', path.read_text())}
    assert {path.name for path in configs if '_base_' in path.parts} <= used
