# RetinaNet on RepVGG-A0, boxes of generated shapes, from scratch: the demo, minutes on two CPU cores.
# Recipe: that of retinanet_repvgg_a0_bccd.py (AdamW 1e-3 after a short warm-up) with 8 images of 96x96 and 500 steps.
# Expected: 70.7 bbox mAP, measured (docs/variants.md).
# Command: python tools/make_shapes.py data/shapes && python tools/train.py configs/retinanet_repvgg_a0_shapes.py
_base_ = 'retinanet_repvgg_a0_bccd.py'

data_root = 'data/shapes'
metainfo = dict(
    classes=('disk', 'ring', 'square', 'triangle', 'cross'),
    palette=[(220, 30, 60), (220, 220, 40), (20, 110, 220), (50, 190, 60), (190, 50, 200)])
scale = (96, 96)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/val.json')
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=5))
max_iters = 500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
