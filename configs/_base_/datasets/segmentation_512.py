# Pipelines of mmsegmentation's recipes for photographs: crops of 512x512, whole images at a height of 512.
_base_ = 'segmentation.py'

crop_size = (512, 512)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # after Resize: the ground truth keeps its own size
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms.insert(0, [dict(type='Resize', scale=(2048, 512), keep_ratio=True)])
