"""One-stage detectors with scores spread between 0 and 1, and mmdet's own predictions of them."""

from __future__ import annotations

import torch
from helpers import randomise_norms, retinanet_config
from mmengine.config import Config

from repvgg_mm.openmmlab.model import build_model

ANCHOR = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
              strides=[8, 16, 32, 64, 128])
COMMON = dict(num_classes=3, in_channels=16, stacked_convs=1, feat_channels=16)
SCORES = dict(type='QualityFocalLoss', use_sigmoid=True)
HEADS = dict(
    RetinaNet={},
    ATSS=dict(type='ATSSHead', anchor_generator=ANCHOR, norm_cfg=dict(type='BN'),
              bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])),
    FCOS=dict(type='FCOSHead', strides=[8, 16, 32, 64, 128], norm_on_bbox=True, norm_cfg=dict(type='BN')),
    GFL=dict(type='GFLHead', anchor_generator=ANCHOR, norm_cfg=dict(type='BN'), loss_cls=SCORES, reg_max=7),
    RTMDet=dict(type='RTMDetHead', anchor_generator=dict(type='MlvlPointGenerator', offset=0,
                                                         strides=[8, 16, 32, 64, 128]), loss_cls=SCORES,
                bbox_coder=dict(type='DistancePointBBoxCoder'), with_objectness=False, norm_cfg=dict(type='BN')),
    TOOD=dict(type='TOODHead', anchor_generator=ANCHOR, norm_cfg=dict(type='BN'), stacked_convs=2))
YOLOX = dict(type='YOLOXHead', strides=(8, 16, 32, 64, 128))  # predicts by fewer settings than the others


def detector_config(name: str) -> Config:
    model = retinanet_config()
    head = YOLOX if name == 'YOLOX' else HEADS[name]
    if head:
        model = dict(model, type=name, bbox_head=dict(COMMON, **head), train_cfg=None)
    if name == 'YOLOX':
        model['test_cfg'] = dict(score_thr=0.3, nms=dict(type='nms', iou_threshold=0.5))
    return Config(dict(model=model, default_scope='mmdet'))


def detector(name: str) -> tuple[torch.nn.Module, Config]:
    """With scores spread between 0 and 1, so that thresholds, NMS and the limits of each level have work to do."""
    torch.manual_seed(0)
    cfg = detector_config(name)
    model = randomise_norms(build_model(cfg)).eval()
    layers = [module for name, module in model.bbox_head.named_modules()
              if isinstance(module, torch.nn.Conv2d) and 'cls' in name and module.out_channels % 3 == 0]
    with torch.no_grad():
        if name == 'RetinaNet':  # boxes of its anchors' size rather than of the image's
            model.bbox_head.retina_reg.weight.mul_(0.1)
        if name == 'TOOD':  # whose scores are geometric means of two
            model.bbox_head.cls_prob_module[-1].bias.fill_(1)
            model.bbox_head.reg_offset_module[-1].weight.normal_(std=0.03)  # pixels
            model.bbox_head.tood_reg.weight.mul_(0.1)
            layers[0].weight.normal_(std=0.1)
            return model, cfg
        if name == 'YOLOX':
            for layer in model.bbox_head.multi_level_conv_reg:
                layer.weight.mul_(0.1)
        for layer in layers:
            layer.weight.normal_()
        for logits, layer in zip(model(torch.randn(1, 3, 256, 256))[0], layers * 5):
            if logits.shape[-1] == 32 or len(layers) > 1:
                layer.weight.mul_(2 / logits.std())
                layer.bias.copy_(-1 - logits.mean() * 2 / logits.std())
    return model, cfg


def predict(model: torch.nn.Module, image: torch.Tensor, scale_factor=(1.0, 1.0)):
    """mmdet's own predictions for an image (3, H, W) of uint8."""
    from mmdet.structures import DetDataSample
    shape = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=scale_factor))
    with torch.no_grad():
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances


def assert_same_detections(found, expected, pixels: float = 1e-4) -> None:
    """In the same order, except where scores are equal: there mmdet's sorting may take either first."""
    assert len(expected) > 5
    boxes, labels = torch.from_numpy(found.boxes), torch.from_numpy(found.labels)
    torch.testing.assert_close(torch.from_numpy(found.scores), expected.scores, rtol=1e-5, atol=1e-6)
    distance = (boxes[:, None] - expected.bboxes).abs().amax(2) + 1e6 * (labels[:, None] != expected.labels)
    nearest = distance.argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(expected)))
    torch.testing.assert_close(labels, expected.labels[nearest])
    torch.testing.assert_close(boxes, expected.bboxes[nearest], rtol=1e-5, atol=pixels)
    torch.testing.assert_close(torch.from_numpy(found.scores), expected.scores[nearest], rtol=1e-5, atol=1e-6)
