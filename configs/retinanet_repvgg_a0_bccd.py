# RetinaNet on RepVGG-A0, BCCD blood cells, from scratch: minutes on two CPU cores.
# Recipe: this project's own (AdamW 1e-3 after a short warm-up, 4 images of 320x240, 600 steps, no pretrained weights).
# Expected: 51.7 bbox mAP, measured (docs/variants.md).
# Command: python tools/train.py configs/retinanet_repvgg_a0_bccd.py
_base_ = [
    '_base_/models/retinanet_repvgg.py', '_base_/datasets/bccd.py',
    '_base_/schedules/short_adamw_detection.py', '_base_/detection_runtime.py']

model = dict(
    neck=dict(out_channels=96),
    bbox_head=dict(num_classes=3, in_channels=96, feat_channels=96, stacked_convs=2))
default_hooks = dict(logger=dict(interval=20))
