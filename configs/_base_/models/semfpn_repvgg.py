# Semantic FPN (arXiv 1901.02446) on RepVGG at its own strides 4 to 32.
_base_ = 'pspnet_repvgg.py'

model = dict(
    backbone=dict(strides=(2, 2, 2, 2), dilations=(1, 1, 1, 1)),
    neck=dict(type='FPN', in_channels=[48, 96, 192, 1280], out_channels=256, num_outs=4),
    decode_head=dict(
        _delete_=True,
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg={{_base_.norm_cfg}},
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
