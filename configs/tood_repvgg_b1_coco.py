# TOOD on RepVGG-B1, COCO.
# Recipe: the usual 1x of mmdetection, in epochs (SGD, lr 0.01, weight decay 1e-4, 8 GPUs x 2 images, 12 epochs), stem and stage 1 frozen.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/tood_repvgg_b1_coco.py 8
_base_ = [
    '_base_/models/tood_repvgg.py', '_base_/datasets/coco.py',
    '_base_/schedules/detection_1x.py', '_base_/detection_runtime.py', '_base_/weights.py']

model = dict(
    backbone=dict(
        arch='B1',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.B1}}, prefix='backbone.')),
    neck=dict(in_channels=[128, 256, 512, 2048]))
optim_wrapper = dict(optimizer=dict(lr=0.01))
# TOOD counts epochs; 12 of them are about 90 000 steps.
train_dataloader = dict(sampler=dict(type='DefaultSampler'))
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', milestones=[8, 11], gamma=0.1, by_epoch=True)]
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
