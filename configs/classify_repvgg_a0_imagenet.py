# RepVGG-A0 on ImageNet with mmpretrain's classifier: train a backbone of your own.
# Recipe: the paper, section 4.1 (SGD, lr 0.1, cosine, weight decay 1e-4, 8 GPUs x 32 images of 224x224, 120 epochs).
# Expected: 72.41 top-1, published in the paper; not measured here.
# Command: bash tools/dist_train.sh configs/classify_repvgg_a0_imagenet.py 8
_base_ = [
    '_base_/models/classifier_repvgg.py', '_base_/datasets/imagenet.py',
    '_base_/schedules/paper_120_epochs.py', '_base_/classification_runtime.py']
