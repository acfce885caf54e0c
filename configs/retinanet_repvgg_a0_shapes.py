# RetinaNet on RepVGG-A0, boxes of generated shapes, from scratch: the demo, minutes on two CPU cores.
# Recipe: that of retinanet_repvgg_a0_bccd.py (AdamW 1e-3 after a short warm-up) with 8 images of 96x96 and 500 steps.
# Expected: 70.7 bbox mAP, measured (docs/variants.md).
# Command: python tools/make_shapes.py data/shapes && python tools/train.py configs/retinanet_repvgg_a0_shapes.py
_base_ = [
    '_base_/models/retinanet_repvgg.py', '_base_/datasets/shape_boxes.py',
    '_base_/schedules/short_adamw_detection.py', '_base_/detection_runtime.py']

model = dict(
    neck=dict(out_channels=96),
    bbox_head=dict(num_classes=5, in_channels=96, feat_channels=96, stacked_convs=2))
max_iters = 500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
default_hooks = dict(logger=dict(interval=20))
