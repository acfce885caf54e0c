# Boxes of generated shapes, 5 classes, 96x96 pixels: python tools/make_shapes.py data/shapes
_base_ = 'bccd.py'

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
