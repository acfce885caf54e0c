# Recipe of the RepVGG paper for PSPNet on Cityscapes (section 4.3): SGD, lr 0.01, poly 0.9, weight
# decay 1e-4, 16 images a step, 40 epochs of 2975 images = 7438 steps.
#
# Weight decay as in the official code: none on biases and on the norms of the 3x3 and 1x1 branches;
# the scale of the identity branch keeps it. mmengine decides by module type (norm_decay_mult) and,
# for the identity branch, by a part of the name that no other module has.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'branch_norm.weight': dict(decay_mult=1.0)}),
    clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=7438, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=7438, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
