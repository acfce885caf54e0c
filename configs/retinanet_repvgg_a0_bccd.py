# RetinaNet on RepVGG-A0, BCCD blood cells, from scratch: minutes on two CPU cores.
# Recipe: this project's own (AdamW 1e-3 after a short warm-up, 4 images of 320x240, 600 steps, no pretrained weights).
# Expected: 51.7 bbox mAP, measured (docs/variants.md).
# Command: python tools/train.py configs/retinanet_repvgg_a0_bccd.py
_base_ = [
    '_base_/models/retinanet_repvgg.py', '_base_/datasets/bccd.py',
    '_base_/schedules/short_adamw.py', '_base_/detection_runtime.py']

max_iters = 600
model = dict(
    neck=dict(out_channels=96),
    bbox_head=dict(num_classes=3, in_channels=96, feat_channels=96, stacked_convs=2))
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=10))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=40, end=max_iters, by_epoch=False)]
default_hooks = dict(logger=dict(interval=20))
