# Recipe of the RepVGG paper for ImageNet (section 4.1), A and B0 to B1: SGD, lr 0.1, cosine, 256 images a step,
# 120 epochs, weight decay 1e-4 on the kernels of convolutions and linear layers alone. (The official code decays the
# scale of the identity branch too: custom_keys={'branch_norm.weight': dict(decay_mult=1.0)}.) B2 and larger: 200 epochs
# with label smoothing, AutoAugment and mixup, which no config has.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=120, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=120, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=256)
