# short_adamw.py for detectors: a warm-up of 40 steps, gradients clipped, 600 steps.
_base_ = 'short_adamw.py'

max_iters = 600
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=10))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=40, end=max_iters, by_epoch=False)]
