"""Images, and tiny trained nets as files: made once for all these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import TINY, pspnet_config, randomise_norms, retinanet_config
from mmengine.config import Config

from repvgg_mm import whole_model_convert
from repvgg_mm.archs import get_arch
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.config import deploy_config
from repvgg_mm.openmmlab.model import build_model

CLASSES = ('sea', 'sand', 'palm')
PALETTE = [[20, 60, 200], [230, 210, 120], [30, 150, 60]]


class TrainedFiles(NamedTuple):
    """A net in both forms."""

    config: Path
    checkpoint: Path
    deploy_config: Path
    deploy_checkpoint: Path


@pytest.fixture(scope='session')
def images(tmp_path_factory) -> Path:
    """64x64 images in images/train and images/val, under equal names."""
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=2, size=64) / 'images'


@pytest.fixture(scope='session')
def classes() -> list[str]:
    """Of the nets of `trained`."""
    return list(CLASSES)


@pytest.fixture(scope='session')
def palette() -> list[list[int]]:
    """Of the nets of `trained`."""
    return PALETTE


@pytest.fixture(scope='session')
def trained(tmp_path_factory) -> Callable[[str], TrainedFiles]:
    """The files of a 'pspnet', 'retinanet' or 'mask_rcnn'."""
    made = {}

    def of(kind: str) -> TrainedFiles:
        if kind not in made:
            made[kind] = _write_files(kind, tmp_path_factory.mktemp(kind))
        return made[kind]
    return of


def _write_files(kind: str, folder: Path) -> TrainedFiles:
    names = ('net.py', 'net.pth', 'deploy.py', 'deploy.pth')
    files = TrainedFiles(*(folder / name for name in names))
    cfg = _config(kind)
    torch.manual_seed(0)
    model = randomise_norms(build_model(cfg))

    cfg.dump(files.config)
    deploy_config(cfg).dump(files.deploy_config)
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), files.checkpoint)
    whole_model_convert(model, save_path=files.deploy_checkpoint)
    return files


def _config(kind: str) -> Config:
    """A tiny net of 3 classes; annotations are read in the middle of the test pipeline, and there is no dataset."""
    segments = kind == 'pspnet'
    model = dict(pspnet=pspnet_config, retinanet=retinanet_config, mask_rcnn=_mask_rcnn_config)[kind]()
    if kind == 'retinanet':
        model['test_cfg'].update(score_thr=0.0, max_per_img=20)

    annotations = {} if segments else dict(with_bbox=True)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', **annotations),
        dict(type='Resize', scale=(96, 128), keep_ratio=True),
        dict(type='PackSegInputs' if segments else 'PackDetInputs'),
    ]
    dataset = dict(
        type='BaseSegDataset' if segments else 'CocoDataset',
        data_root='nowhere',
        ann_file='missing.json',
        metainfo=dict(classes=CLASSES, palette=PALETTE),
        pipeline=pipeline)
    return Config(dict(
        default_scope='mmseg' if segments else 'mmdet',
        custom_imports=dict(imports=['repvgg_mm']),
        model=model,
        test_pipeline=pipeline,
        test_dataloader=dict(dataset=dataset)))


def _mask_rcnn_config() -> dict:
    import mmdet
    model = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py').model
    widths = list(get_arch(TINY).stage_channels)
    model.backbone = dict(type='RepVGG', arch=TINY)
    model.neck.update(in_channels=widths, out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=3)
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    return model.to_dict() | {'_scope_': 'mmdet'}
