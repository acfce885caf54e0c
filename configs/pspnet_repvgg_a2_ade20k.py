# PSPNet on RepVGG-A2, ADE20K.
# Recipe: mmsegmentation's 80k schedule of its PSPNets (SGD, lr 0.01, poly 0.9, 16 crops of 512x512), weight decay 1e-4 as in the paper.
# Expected: not measured.
# Command: bash tools/dist_train.sh configs/pspnet_repvgg_a2_ade20k.py 4
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py', '_base_/weights.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='A2',
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.A2}}, prefix='backbone.')),
    decode_head=dict(in_channels=1408, num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(max_iters=80000, val_interval=8000)
