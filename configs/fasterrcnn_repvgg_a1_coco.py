# Faster R-CNN on RepVGG-A1, COCO.
# Recipe: the usual 1x of mmdetection (SGD, lr 0.02, weight decay 1e-4, 8 GPUs x 2 images, 90 000 steps), stem and stage 1 frozen.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/fasterrcnn_repvgg_a1_coco.py 8
_base_ = [
    '_base_/models/fasterrcnn_repvgg.py', '_base_/datasets/coco.py',
    '_base_/schedules/detection_1x.py', '_base_/detection_runtime.py', '_base_/weights.py']

model = dict(
    backbone=dict(
        arch='A1',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.A1}}, prefix='backbone.')),
    neck=dict(in_channels=[64, 128, 256, 1280]))
