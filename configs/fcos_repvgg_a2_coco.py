# FCOS on RepVGG-A2, COCO.
# Recipe: the usual 1x of mmdetection (SGD, lr 0.01, weight decay 1e-4, 8 GPUs x 2 images, 90 000 steps), stem and stage 1 frozen.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/fcos_repvgg_a2_coco.py 8
_base_ = [
    '_base_/models/fcos_repvgg.py', '_base_/datasets/coco.py',
    '_base_/schedules/detection_1x.py', '_base_/detection_runtime.py', '_base_/weights.py']

model = dict(
    backbone=dict(
        arch='A2',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.A2}}, prefix='backbone.')),
    neck=dict(in_channels=[96, 192, 384, 1408]))
optim_wrapper = dict(optimizer=dict(lr=0.01))
