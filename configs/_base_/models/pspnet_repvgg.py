# PSPNet (arXiv 1612.01105) on RepVGG-A0 at output stride 8, with the auxiliary head of the paper.
# Another arch: change `arch` and the two `in_channels` (width of stage 4 and of stage 3).
custom_imports = dict(imports=['repvgg_mm'])

norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255)
head = dict(
    dropout_ratio=0.1,
    num_classes=19,
    norm_cfg=norm_cfg,
    align_corners=False)
model = dict(
    _scope_='mmseg',  # for whoever builds it with another default scope, as MMEngine's hub does
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='RepVGG',
        arch='A0',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=norm_cfg),
    decode_head=dict(
        type='PSPHead',
        in_channels=1280,
        in_index=3,
        channels=512,
        pool_scales=(1, 2, 3, 6),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        **head),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=192,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        **head),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
