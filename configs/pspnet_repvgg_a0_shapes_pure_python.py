# PSPNet on RepVGG-A0, generated shapes, from scratch, in MMEngine's pure Python style: classes, which an editor can follow.
# Recipe: that of pspnet_repvgg_a0_shapes.py.
# Expected: not measured here; that config is the same network and recipe.
# Command: python tools/make_shapes.py data/shapes && python tools/train.py configs/pspnet_repvgg_a0_shapes_pure_python.py
from mmcv.transforms import LoadImageFromFile, RandomFlip
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, PSPHead, SegDataPreProcessor
from torch.nn import BatchNorm2d
from torch.optim import AdamW

from repvgg_mm import RepVGG

with read_base():
    from ._base_.pure_python_runtime import *

data_root = 'data/shapes'
metainfo = dict(
    classes=('background', 'disk', 'ring', 'square', 'triangle', 'cross'),
    palette=[[60, 60, 60], [220, 30, 60], [220, 220, 40], [20, 110, 220], [50, 190, 60], [190, 50, 200]])
train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations),
    dict(type=RandomFlip, prob=0.5),
    dict(type=RandomFlip, prob=0.5, direction='vertical'),
    dict(type=PackSegInputs)]
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations),
    dict(type=PackSegInputs)]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=BaseSegDataset,
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=BaseSegDataset,
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        metainfo=metainfo,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator

norm_cfg = dict(type=BatchNorm2d)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96)),
    backbone=dict(
        type=RepVGG,
        arch='A0',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4)),
    decode_head=dict(
        type=PSPHead,
        in_channels=1280,
        in_index=3,
        channels=128,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=6,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type=FCNHead,
        in_channels=192,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=6,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=3e-3, weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'branch_norm.weight': dict(decay_mult=1.0)}))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=400, val_interval=400)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, begin=0, end=40, by_epoch=False),
    dict(type=PolyLR, eta_min=0.0, power=0.9, begin=40, end=400, by_epoch=False)]
default_hooks.update(logger=dict(type=LoggerHook, interval=20, log_metric_by_epoch=False))
