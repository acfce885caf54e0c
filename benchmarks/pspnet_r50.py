# mmsegmentation's PSPNet on ResNet-50-V1c at output stride 8, to be compared with: not trained here.
_base_ = '../configs/_base_/models/pspnet_repvgg.py'

default_scope = 'mmseg'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg={{_base_.norm_cfg}},
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(in_channels=2048),
    auxiliary_head=dict(in_channels=1024))
