# mmsegmentation's PSPNet on ResNet-101-V1c at output stride 8, to be compared with: not trained here.
_base_ = 'pspnet_r50.py'

model = dict(backbone=dict(depth=101))
