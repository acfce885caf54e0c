# mmpretrain's classifier on RepVGG. mmpretrain has a RepVGG of its own, so ours is named with its scope.
model = dict(
    _scope_='mmpretrain',  # for whoever builds it with another default scope, as MMEngine's hub does
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(type='repvgg_mm.RepVGG', arch='A0', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=1000, in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0), topk=(1, 5)))
