# PSPNet on RepVGG-A0, Cityscapes: the smallest variant.
# Recipe: that of the paper for B2; the paper has no A0 segmentor, section 4.3 (SGD, lr 0.01, poly 0.9, weight decay 1e-4, 8 GPUs x 2 crops of 713x713, 40 epochs).
# Expected: not measured.
# Command: bash tools/dist_train.sh configs/pspnet_repvgg_a0.py 8
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py', '_base_/weights.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='A0',
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.A0}}, prefix='backbone.')),
    decode_head=dict(in_channels=1280),
    auxiliary_head=dict(in_channels=192))
