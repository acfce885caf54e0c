# DeepLabV3+ (arXiv 1802.02611) on RepVGG at output stride 8.
_base_ = 'pspnet_repvgg.py'

model = dict(decode_head=dict(
    _delete_=True,
    type='DepthwiseSeparableASPPHead',
    in_channels=1280,
    in_index=3,
    channels=512,
    dilations=(1, 12, 24, 36),
    c1_in_channels=48,
    c1_channels=48,
    dropout_ratio=0.1,
    num_classes=19,
    norm_cfg={{_base_.norm_cfg}},
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
