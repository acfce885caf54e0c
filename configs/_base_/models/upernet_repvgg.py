# UPerNet (arXiv 1807.10221) on RepVGG at its own strides 4 to 32.
_base_ = 'pspnet_repvgg.py'

model = dict(
    backbone=dict(strides=(2, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(
        type='UPerHead',
        in_channels=[48, 96, 192, 1280],
        in_index=[0, 1, 2, 3]))
