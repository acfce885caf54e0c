# Semantic FPN at stride 4, CamVid at its full 480x360: the same for every backbone (benchmarks/pareto.py).
_base_ = [
    '../../configs/_base_/models/semfpn_repvgg.py', '../../configs/_base_/datasets/camvid.py',
    '../../configs/_base_/schedules/short_adamw.py', '../../configs/_base_/default_runtime.py']

steps = 2000
crop_size = (192, 192)
norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(out_channels=96),
    decode_head=dict(
        in_channels=[96, 96, 96, 96],
        channels=64,
        num_classes=11,
        norm_cfg=norm_cfg,
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=50000)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=steps, val_interval=steps)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=50, end=steps, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1, save_best=None))
