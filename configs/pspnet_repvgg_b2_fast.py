# The paper's fast variant of pspnet_repvgg_b2.py: only the last five layers are dilated.
# Recipe: the paper, section 4.3 (SGD, lr 0.01, poly 0.9, weight decay 1e-4, 8 GPUs x 2 crops of 713x713, 40 epochs).
# Expected: 79.52 mIoU, published (from the paper's text); not measured here.
# Command: bash tools/dist_train.sh configs/pspnet_repvgg_b2_fast.py 8
_base_ = 'pspnet_repvgg_b2.py'

# stage 3: 16 blocks, the last 4 dilated; stage 4: its only block
model = dict(backbone=dict(dilations=(1, 1, (1,) * 12 + (2,) * 4, 4)))
