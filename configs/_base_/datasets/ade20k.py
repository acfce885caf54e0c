# ADE20K, 150 classes, 20210 training and 2000 validation images; ADE20KDataset takes 1 from each label, 0 is ignored.
_base_ = 'segmentation_512.py'

data_root = '{{$REPVGG_MM_DATA:data}}/ade/ADEChallengeData2016'
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
