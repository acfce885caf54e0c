# UPerNet on RepVGG-B0, Cityscapes.
# Recipe: that of pspnet_repvgg_b2.py, the paper's for PSPNet; not tuned for this head.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/upernet_repvgg_b0_cityscapes.py 8
_base_ = [
    '_base_/models/upernet_repvgg.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py']

weights = 'https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-B0_8xb32_in1k_20221213-5091ecc7.pth'
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='B0',
        init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='backbone.')),
    decode_head=dict(in_channels=[64, 128, 256, 1280]),
    auxiliary_head=dict(in_channels=256))
