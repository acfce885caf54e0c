# FCN (arXiv 1411.4038) on RepVGG at output stride 8.
_base_ = 'pspnet_repvgg.py'

model = dict(decode_head=dict(
    _delete_=True,
    type='FCNHead',
    in_channels=1280,
    in_index=3,
    channels=512,
    num_convs=2,
    concat_input=True,
    dropout_ratio=0.1,
    num_classes=19,
    norm_cfg={{_base_.norm_cfg}},
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
