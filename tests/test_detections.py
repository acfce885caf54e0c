"""Decoded boxes with numpy's post-processing against what mmdet itself predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import randomise_norms, retinanet_config
from mmengine.config import Config

from repvgg_mm import UserError
from repvgg_mm.detections import detect, level_sizes, nms
from repvgg_mm.model_config import build_model
from repvgg_mm.networks import DetectorNetwork, Preprocess, Preprocessing

pytestmark = pytest.mark.stack
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
                bbox_coder=dict(type='DistancePointBBoxCoder'), with_objectness=False, norm_cfg=dict(type='BN')))


def detector_config(name: str) -> Config:
    model = retinanet_config()
    if HEADS[name]:
        model = dict(model, type=name, bbox_head=dict(COMMON, **HEADS[name]), train_cfg=None)
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


def meta_of(network: DetectorNetwork, inside: bool = True) -> dict:
    return dict(levels=network.levels, test_cfg=dict(network.model.bbox_head.test_cfg),
                preprocessing=dict(inside=inside, pad_divisor=32))


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


@pytest.mark.parametrize('settings', [{}, dict(nms_pre=20, max_per_img=30), dict(score_thr=0.5, min_bbox_size=12)])
@pytest.mark.parametrize('name', HEADS)
def test_equals_mmdets_own_predictions(name, settings):
    model, cfg = detector(name)
    model.bbox_head.test_cfg.update(settings)
    network = DetectorNetwork(model, Preprocess(Preprocessing.of_config(cfg))).eval()
    image = torch.randint(256, (3, 135, 203), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    with torch.no_grad():
        outputs = [output.numpy() for output in network(image.permute(1, 2, 0)[None])]
    found, = detect(dict(zip(network.outputs, outputs)), meta_of(network), (135, 203), scale_factor=(0.5, 0.25))
    assert_same_detections(found, predict(model, image, scale_factor=(0.5, 0.25)))


def test_levels_count_padding_only_where_the_engine_pads():
    network = DetectorNetwork(detector('RetinaNet')[0])
    assert level_sizes(meta_of(network), (135, 203)) == [9 * n for n in (20 * 28, 10 * 14, 5 * 7, 3 * 4, 2 * 2)]
    assert level_sizes(meta_of(network, inside=False), (135, 203)) == [9 * n for n in (17 * 26, 9 * 13, 5 * 7, 12, 4)]


@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
def test_nms_equals_mmcvs(threshold):
    from mmcv.ops import nms as mmcv_nms
    random = np.random.default_rng(0)
    corners = random.uniform(0, 60, (300, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0, 40, (300, 2))], 1).astype(np.float32)
    scores = random.permutation(300).astype(np.float32)
    _, expected = mmcv_nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert nms(boxes, scores, threshold).tolist() == expected.tolist()


def test_class_agnostic_and_nothing_found():
    boxes = np.float32([[[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]]])
    scores = np.float32([[[.9, 0], [0, .8], [.1, .2]]])
    settings = dict(score_thr=0.15, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)
    meta = dict(levels=[[8, 8, 3]], test_cfg=settings, preprocessing=dict(inside=False))
    found, = detect(dict(boxes=boxes, scores=scores), meta, (8, 8), image_shape=(40, 40))
    assert found.labels.tolist() == [0, 1, 1]
    settings['nms']['class_agnostic'] = True
    found, = detect(dict(boxes=boxes, scores=scores), meta, (8, 8), image_shape=(40, 40))
    assert found.scores.tolist() == np.float32([.9, .2]).tolist()
    found, = detect(dict(boxes=boxes, scores=scores * 0), meta, (8, 8))
    assert [part.shape for part in found] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize('settings', [dict(type='soft_nms', iou_threshold=0.5), dict(type='nms', max_num=9), None])
def test_other_suppression_is_refused(settings):
    meta = dict(test_cfg=dict(nms=settings, max_per_img=5))
    with pytest.raises(UserError, match=r"plain NMS.*Set model\.test_cfg\.nms"):
        detect({}, meta, (8, 8))
