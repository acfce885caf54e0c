# PASCAL VOC 2012 with the additional annotations of SBD, 21 classes, 10582 training and 1449 validation images.
_base_ = 'segmentation_512.py'

data_root = '{{$REPVGG_MM_DATA:data}}/VOCdevkit/VOC2012'
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
        ann_file='ImageSets/Segmentation/trainaug.txt',
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
