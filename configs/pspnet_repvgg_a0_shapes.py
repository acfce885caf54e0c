# PSPNet on RepVGG-A0, generated shapes, from scratch: the demo, minutes on two CPU cores.
# Recipe: this project's own (AdamW 3e-3 after a short warm-up, 8 images of 96x96, 400 steps, no pretrained weights).
# Expected: 87.00 mIoU, measured (docs/variants.md).
# Command: python tools/make_shapes.py data/shapes && python tools/train.py configs/pspnet_repvgg_a0_shapes.py
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/shapes.py',
    '_base_/schedules/short_adamw.py', '_base_/default_runtime.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(norm_cfg=dict(type='BN')),
    decode_head=dict(num_classes=6, channels=128, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(num_classes=6, channels=64, norm_cfg=dict(type='BN')))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_iters=400, val_interval=400)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=40, end=400, by_epoch=False)]
default_hooks = dict(logger=dict(interval=20))
