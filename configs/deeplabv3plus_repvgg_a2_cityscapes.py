# DeepLabV3+ on RepVGG-A2, Cityscapes.
# Recipe: that of pspnet_repvgg_b2.py, the paper's for PSPNet; not tuned for this head.
# Expected: not measured here.
# Command: bash tools/dist_train.sh configs/deeplabv3plus_repvgg_a2_cityscapes.py 8
_base_ = [
    '_base_/models/deeplabv3plus_repvgg.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py', '_base_/weights.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='A2',
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.A2}}, prefix='backbone.')),
    decode_head=dict(in_channels=1408, c1_in_channels=96),
    auxiliary_head=dict(in_channels=384))
