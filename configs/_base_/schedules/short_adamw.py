# A short run from scratch on a small dataset: AdamW, poly 0.9. Weight decay as in paper_40_epochs.py.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'branch_norm.weight': dict(decay_mult=1.0)}),
    clip_grad=None)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=400, val_interval=400)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=400, by_epoch=False)]
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
