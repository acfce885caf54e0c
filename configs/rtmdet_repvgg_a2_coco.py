# RTMDet's neck and head on RepVGG-A2, COCO.
# Recipe: the 1x schedule with RTMDet's optimizer (AdamW, 2.5e-4 for 16 images, weight decay 0.05), without its 300 epochs, mosaics and EMA; not tuned. Stem and stage 1 frozen.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/rtmdet_repvgg_a2_coco.py 8
_base_ = [
    '_base_/models/rtmdet_repvgg.py', '_base_/datasets/coco.py',
    '_base_/schedules/detection_1x.py', '_base_/detection_runtime.py', '_base_/weights.py']

model = dict(
    backbone=dict(
        arch='A2',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.A2}}, prefix='backbone.')),
    neck=dict(in_channels=[192, 384, 1408]))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2.5e-4, weight_decay=0.05),
    paramwise_cfg=dict(bypass_duplicate=True))  # the head's levels share their convolutions
