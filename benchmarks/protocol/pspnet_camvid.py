# PSPNet at output stride 8, CamVid at 240x180: the same for every backbone (benchmarks/pareto.py).
_base_ = '../../configs/pspnet_repvgg_a0_camvid.py'

steps = 700
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=steps, val_interval=steps)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=50, end=steps, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1, save_best=None))
