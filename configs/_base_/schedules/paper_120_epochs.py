# Recipe of the RepVGG paper for ImageNet (section 4.1): SGD, lr 0.1, cosine, weight decay 1e-4, 256 images a step, 120
# epochs. Weight decay as in paper_40_epochs.py.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'branch_norm.weight': dict(decay_mult=1.0)}))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=120, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=120, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=256)
