# GFL on RepVGG-B1g2, COCO.
# Recipe: the usual 1x of mmdetection (SGD, lr 0.01, weight decay 1e-4, 8 GPUs x 2 images, 90 000 steps), stem and stage 1 frozen.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/gfl_repvgg_b1g2_coco.py 8
_base_ = [
    '_base_/models/gfl_repvgg.py', '_base_/datasets/coco.py',
    '_base_/schedules/detection_1x.py', '_base_/detection_runtime.py', '_base_/weights.py']

model = dict(
    backbone=dict(
        arch='B1g2',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.B1g2}}, prefix='backbone.')),
    neck=dict(in_channels=[128, 256, 512, 2048]))
optim_wrapper = dict(optimizer=dict(lr=0.01))
