"""Decoded boxes with numpy's post-processing against what mmdet itself predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import HEADS, assert_same_detections, detector, predict
from engines import description

from repvgg_mm import UserError
from repvgg_mm.engine.description import Description
from repvgg_mm.engine.detections import _best, check_settings, detect, level_sizes, nms
from repvgg_mm.export.networks import DetectorNetwork, Preprocess
from repvgg_mm.openmmlab.preprocessing import Preprocessing

pytestmark = pytest.mark.stack


def described(levels: Sequence | None, test_cfg: Mapping | None, inside: bool = False) -> Description:
    """A detector's; `inside` it images are padded to a multiple of 32."""
    common = description(task='detection', levels=levels, test_cfg=test_cfg)
    return replace(common, preprocessing=replace(common.preprocessing, inside=inside, pad_divisor=32))


def description_of(network: DetectorNetwork, inside: bool = True) -> Description:
    common = described(network.levels, dict(network.model.bbox_head.test_cfg), inside)
    return common if network.clips else replace(common, clipped=False)


@pytest.mark.parametrize('settings', [{}, dict(nms_pre=20, max_per_img=30), dict(score_thr=0.5, min_bbox_size=12)])
@pytest.mark.parametrize('name', HEADS)
def test_equals_mmdets_own_predictions(name, settings):
    model, cfg = detector(name)
    model.bbox_head.test_cfg.update(settings)
    network = DetectorNetwork(model, Preprocess(Preprocessing.of_config(cfg))).eval()
    image = torch.randint(256, (3, 135, 203), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    with torch.no_grad():
        outputs = [output.numpy() for output in network(image.permute(1, 2, 0)[None])]
    found, = detect(dict(zip(network.outputs, outputs)), description_of(network), (135, 203), scale_factor=(0.5, 0.25))
    assert_same_detections(found, predict(model, image, scale_factor=(0.5, 0.25)))


def test_yolox_chooses_one_class_of_a_prior_and_has_no_limit():
    model, cfg = detector('YOLOX')
    network = DetectorNetwork(model, Preprocess(Preprocessing.of_config(cfg))).eval()
    image = torch.randint(256, (3, 135, 203), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores = network(image.permute(1, 2, 0)[None])
    assert ((scores > 0).sum(2) == 1).all()
    outputs = dict(boxes=boxes.numpy(), scores=scores.numpy())
    found, = detect(outputs, description_of(network), (135, 203), scale_factor=(0.5, 0.25))
    assert (found.boxes < 0).any()  # beyond the image, as mmdet leaves them
    assert_same_detections(found, predict(model, image, scale_factor=(0.5, 0.25)))


def test_levels_count_padding_only_where_the_engine_pads():
    network = DetectorNetwork(detector('RetinaNet')[0])
    padding = description_of(network)
    assert level_sizes(padding, (135, 203)) == [9 * n for n in (20 * 28, 10 * 14, 5 * 7, 3 * 4, 2 * 2)]
    as_it_is = description_of(network, inside=False)
    assert level_sizes(as_it_is, (135, 203)) == [9 * n for n in (17 * 26, 9 * 13, 5 * 7, 12, 4)]


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
    engine = described([[8, 8, 3]], settings)
    found, = detect(dict(boxes=boxes, scores=scores), engine, (8, 8), image_shape=(40, 40))
    assert found.labels.tolist() == [0, 1, 1]
    settings['nms']['class_agnostic'] = True
    found, = detect(dict(boxes=boxes, scores=scores), engine, (8, 8), image_shape=(40, 40))
    assert found.scores.tolist() == np.float32([.9, .2]).tolist()
    found, = detect(dict(boxes=boxes, scores=scores * 0), engine, (8, 8))
    assert [part.shape for part in found[:3]] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize(('least', 'kept'), [(0, [0, 2]), (-1, [0, 1, 2])])
def test_detections_of_an_engine_with_suppression_inside(least, kept):
    """Of an image of 20x30 in an input of 32x40, half as large as the original: one box lies in the padding."""
    boxes = np.float32([[[1, 2, 38, 20], [32, 4, 38, 8], [0, 0, 4, 2], [0, 0, 0, 0]]])
    outputs = dict(boxes=boxes, scores=np.float32([[.9, .8, .7, 0]]), labels=np.array([[2, 0, 1, -1]]))
    engine = description(task='detection', nms='inside', test_cfg=dict(min_bbox_size=least))
    found, = detect(outputs, engine, (32, 40), image_shape=(20, 30), scale_factor=(0.5, 0.5))
    assert found.scores.tolist() == outputs['scores'][0, kept].tolist()
    assert found.labels.tolist() == outputs['labels'][0, kept].tolist()
    assert found.boxes.tolist() == np.float32([[2, 4, 60, 40], [60, 8, 60, 16], [0, 0, 8, 4]])[kept].tolist()


@pytest.mark.parametrize('settings', [dict(type='soft_nms', iou_threshold=0.5), dict(type='nms', max_num=9), None])
def test_other_suppression_is_refused(settings):
    engine = described([], dict(nms=settings, max_per_img=5))
    with pytest.raises(UserError, match=r"plain NMS.*Set model\.test_cfg\.nms"):
        detect({}, engine, (8, 8))


def test_scores_at_the_threshold_are_left_out_and_equal_ones_keep_their_order():
    """As torch's `>` and its stable sort have it in mmdet."""
    scores = np.array([[0.5, 0.75], [0.75, 0.5], [0.75, 0.25], [1., 0.5]], np.float32)
    priors, labels = _best(scores, [0, 3, 4], 0.5, -1)
    assert list(zip(priors, labels)) == [(0, 1), (1, 0), (2, 0), (3, 0)]
    priors, labels = _best(scores, [0, 3, 4], 0.5, 2)
    assert list(zip(priors, labels)) == [(0, 1), (1, 0), (3, 0)]


def test_of_boxes_with_equal_scores_the_first_is_kept():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [50, 50, 60, 61]], np.float32)
    assert nms(boxes, np.full(4, 0.5, np.float32), 0.5).tolist() == [0, 2]


def test_outputs_of_another_input():
    outputs = dict(boxes=np.zeros((1, 16, 4)), scores=np.zeros((1, 16, 3)))
    settings = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)
    assert len(detect(outputs, described([[8, 8, 1]], settings), (32, 32))) == 1
    with pytest.raises(UserError, match=r'An input of \(32, 40\) has 20 priors .*, and the outputs have 16\. Give'):
        detect(outputs, described([[8, 8, 1]], settings), (32, 40))


def test_a_description_without_levels():
    with pytest.raises(UserError, match='this description of detection has none'):
        detect({}, described(None, None), (32, 32))


@pytest.mark.parametrize('key, value', [('nms_pre', '1000'), ('score_thr', True), ('max_per_img', None)])
def test_settings_are_numbers(key, value):
    settings = dict(nms=dict(type='nms', iou_threshold=0.5), **{key: value})
    with pytest.raises(UserError, match=rf'{key} is a number, and this test_cfg has {key}={value!r}'):
        check_settings(settings)
