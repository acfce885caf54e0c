# PSPNet on RepVGG-A0, generated shapes, from scratch: the demo, minutes on two CPU cores.
# Recipe: this project's own (AdamW 1e-3, 8 images of 96x96, 320 steps, no pretrained weights).
# Expected: see docs/results.md.
# Command: python tools/make_shapes.py data/shapes && python tools/train.py configs/pspnet_repvgg_a0_shapes.py
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/shapes.py',
    '_base_/schedules/short_adamw.py', '_base_/default_runtime.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(norm_cfg=dict(type='BN')),
    decode_head=dict(num_classes=6, channels=128, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(num_classes=6, channels=64, norm_cfg=dict(type='BN')))
train_cfg = dict(max_iters=320, val_interval=320)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=320, by_epoch=False)]
default_hooks = dict(logger=dict(interval=20))
