# PSPNet on RepVGG-A0, CamVid, from scratch: real data on a laptop's or a small server's CPU.
# Recipe: this project's own (AdamW 3e-3, 8 crops of 160x160, 560 steps, no pretrained weights).
# Expected: 41.74 mIoU, measured (docs/variants.md).
# Command: python tools/train.py configs/pspnet_repvgg_a0_camvid.py
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/camvid.py',
    '_base_/schedules/short_adamw.py', '_base_/default_runtime.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(norm_cfg=dict(type='BN')),
    decode_head=dict(num_classes=11, channels=128, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(num_classes=11, channels=64, norm_cfg=dict(type='BN')))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_iters=560, val_interval=560)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=560, by_epoch=False)]
default_hooks = dict(logger=dict(interval=20))
