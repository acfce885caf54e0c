# RepVGG-A0 on folders of generated shapes with mmpretrain's classifier: a minute on two CPU cores.
# Recipe: the paper's for ImageNet, with lr 0.02, batches of 32 and 3 epochs.
# Expected: 81.0 top-1, measured (docs/variants.md).
# Command: python tools/make_shapes.py data/shape_folders --classification && python tools/train.py configs/classify_repvgg_a0_shapes.py
_base_ = [
    '_base_/models/classifier_repvgg.py', '_base_/datasets/shape_folders.py',
    '_base_/schedules/paper_120_epochs.py', '_base_/classification_runtime.py']

model = dict(head=dict(num_classes=5, topk=(1,)))
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=3, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=3)
default_hooks = dict(logger=dict(interval=10))
