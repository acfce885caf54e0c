# UPerNet on RepVGG-B0, Cityscapes.
# Recipe: that of pspnet_repvgg_b2.py, the paper's for PSPNet; not tuned for this head.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/upernet_repvgg_b0_cityscapes.py 8
_base_ = [
    '_base_/models/upernet_repvgg.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py', '_base_/weights.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='B0',
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.B0}}, prefix='backbone.')),
    decode_head=dict(in_channels=[64, 128, 256, 1280]),
    auxiliary_head=dict(in_channels=256))
