# PSPNet on RepVGG-B2, Cityscapes.
# Recipe: the paper, section 4.3 (SGD, lr 0.01, poly 0.9, weight decay 1e-4, 8 GPUs x 2 crops of 713x713, 40 epochs).
# Expected: 80.57 mIoU, published in the paper; not measured here.
# Command: bash tools/dist_train.sh configs/pspnet_repvgg_b2.py 8
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py', '_base_/weights.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='B2',
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.B2}}, prefix='backbone.')),
    decode_head=dict(in_channels=2560),
    auxiliary_head=dict(in_channels=640))
