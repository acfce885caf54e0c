# PSPNet on RepVGG-B0, PASCAL VOC 2012 with augmented training set.
# Recipe: mmsegmentation's 40k schedule of its PSPNets (SGD, lr 0.01, poly 0.9, 16 crops of 512x512), weight decay 1e-4 as in the paper.
# Expected: not measured.
# Command: bash tools/dist_train.sh configs/pspnet_repvgg_b0_voc12aug.py 4
_base_ = [
    '_base_/models/pspnet_repvgg.py', '_base_/datasets/voc12aug.py',
    '_base_/schedules/paper_40_epochs.py', '_base_/default_runtime.py', '_base_/weights.py']

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(
        arch='B0',
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.weights.B0}}, prefix='backbone.')),
    decode_head=dict(in_channels=1280, num_classes=21),
    auxiliary_head=dict(in_channels=256, num_classes=21))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=40000, by_epoch=False)]
train_cfg = dict(max_iters=40000, val_interval=4000)
