"""Detections of a network with suppression inside, and of engines of it, against mmdet's own predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from detectors import HEADS, assert_same_detections, detector, predict
from engines import description
from helpers import retinanet_config
from mmengine.config import Config
from torch import Tensor, nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.engine.detections import Detections, detect
from repvgg_mm.engine.openvino_file import openvino_core
from repvgg_mm.export.detectors import DetectorWithNms, clip, replace_deformable_sampling, sample_at
from repvgg_mm.export.networks import Preprocess, network_of
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.openmmlab.model import build_model, settings_of
from repvgg_mm.openmmlab.preprocessing import Preprocessing

EXACT = dict(rtol=0, atol=0)
SIZE = (135, 203)
PIXELS = 1e-3  # mmdet moves classes apart by offsets, which costs its boxes' overlaps some digits
AGNOSTIC = dict(type='nms', iou_threshold=0.5, class_agnostic=True)
INSIDE = description(task='detection', outputs=['boxes', 'scores', 'labels'], nms='inside')


def images(count: int) -> Tensor:
    return torch.randint(256, (count, 3, *SIZE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def with_nms(name: str, settings: Mapping) -> tuple[nn.Module, DetectorWithNms]:
    model, cfg = detector(name)
    model.bbox_head.test_cfg.update(settings)
    deploy = replace_deformable_sampling(whole_model_convert(model))
    return model, network_of(deploy, Preprocess(Preprocessing.of_config(cfg)), nms=True)


def found_in(outputs: Mapping, model: nn.Module, **sizes: object) -> list[Detections]:
    clipped = False if type(model).__name__ in ('TOOD', 'YOLOX') else None
    return detect(outputs, replace(INSIDE, test_cfg=settings_of(model), clipped=clipped), SIZE, **sizes)


def run(network: nn.Module, batch: Tensor) -> dict:
    with torch.no_grad():
        outputs = [output.numpy() for output in network(batch.permute(0, 2, 3, 1))]
    return dict(zip(network.outputs, outputs))


@pytest.mark.stack
@pytest.mark.parametrize('settings', [
    {}, dict(nms_pre=20, max_per_img=30), dict(score_thr=0.5), dict(nms=AGNOSTIC)])
@pytest.mark.parametrize('name', HEADS)
def test_equals_mmdets_own_predictions(name, settings):
    model, network = with_nms(name, settings)
    batch = images(1)
    found, = found_in(run(network, batch), model, scale_factor=(0.5, 0.25))
    assert_same_detections(found, predict(model, batch[0], scale_factor=(0.5, 0.25)), PIXELS)


def engines_of(network: DetectorWithNms, example: Tensor, batch: Tensor, file: Path) -> list[dict]:
    """Outputs for a batch of ONNX Runtime and of OpenVINO."""
    onnx.save(to_onnx(network, example.permute(0, 2, 3, 1).contiguous(), network.outputs), file)
    inputs = batch.permute(0, 2, 3, 1).contiguous().numpy()
    by_onnxruntime = onnxruntime.InferenceSession(file).run(None, dict(image=inputs))
    by_openvino = openvino_core().compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(inputs)
    return [dict(zip(network.outputs, outputs)) for outputs in (by_onnxruntime, list(by_openvino.values()))]


@pytest.mark.parametrize('name', [*HEADS, 'YOLOX'])
def test_both_engines_equal_mmdets_own_predictions_of_a_batch(name, tmp_path):
    model, network = with_nms(name, dict(max_per_img=300, score_thr=0.3))
    batch = images(2)
    batch[1] = batch[1] // 4
    expected = [predict(model, image) for image in batch]
    assert expected[0].scores[0] != expected[1].scores[0]
    for outputs in engines_of(network, batch, batch, tmp_path / 'engine.onnx'):
        assert outputs['boxes'].shape == (2, 300, 4)
        for found, wanted in zip(found_in(outputs, model), expected):
            assert_same_detections(found, wanted, PIXELS)


def test_no_detection_at_all(tmp_path):
    model, network = with_nms('RetinaNet', dict(score_thr=1.0, max_per_img=7))
    batch = images(1)
    for outputs in (run(network, batch), *engines_of(network, batch, batch, tmp_path / 'engine.onnx')):
        assert outputs['boxes'].shape == (1, 7, 4) and not outputs['boxes'].any() and not outputs['scores'].any()
        assert (outputs['labels'] == -1).all()
        found, = found_in(outputs, model)
        assert [part.shape for part in found[:3]] == [(0, 4), (0,), (0,)]


def test_sampling_equals_mmcvs_deformable_convolution():
    from mmcv.ops import deform_conv2d
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 5, 7, generator=generator)
    offsets = 3 * torch.randn(2, 8, 5, 7, generator=generator)  # some samples lie outside, some half outside
    expected = deform_conv2d(features, offsets, torch.ones(4, 1, 1, 1), 1, 0, 1, 4, 4)
    torch.testing.assert_close(sample_at(features, offsets), expected, rtol=1e-5, atol=1e-5)


class BestOfLevel(nn.Module):
    """Of rows (N, P, 7), boxes beside scores."""

    def __init__(self, network: DetectorWithNms) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.network.best(rows[..., :4], rows[..., 4:])


def test_a_level_of_any_size_has_fewer_pairs_than_nms_pre_or_more(tmp_path):
    best = BestOfLevel(with_nms('RetinaNet', dict(nms_pre=20, score_thr=0.25))[1])
    random = torch.Generator().manual_seed(0)
    example = torch.rand(2, 9, 7, generator=random)
    onnx.save(to_onnx(best, example, best.network.outputs, (0, 1)), tmp_path / 'best.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'best.onnx')
    for priors, expected in ((5, 15), (50, 20)):
        rows = torch.rand(1, priors, 7, generator=random)
        boxes, scores, labels = map(torch.from_numpy, session.run(None, dict(image=rows.numpy())))
        assert scores.shape == (1, expected) and boxes.shape == (1, expected, 4)
        pairs = rows[0, :, 4:].flatten().sort(descending=True)
        wanted, chosen = pairs.values[:expected], pairs.indices[:expected]
        torch.testing.assert_close(scores[0], torch.where(wanted > 0.25, wanted, 0.), **EXACT)
        torch.testing.assert_close(boxes[0], rows[0, chosen // 3, :4], **EXACT)
        torch.testing.assert_close(labels[0], chosen % 3, **EXACT)


def test_boxes_are_cut_off_at_the_image():
    boxes = torch.tensor([[[-1., -2, 30, 40], [5, 6, 7, 8], [25, 3, 27, 4]]])
    expected = torch.tensor([[[0., 0, 20, 10], [5, 6, 7, 8], [20, 3, 20, 4]]])
    torch.testing.assert_close(clip(boxes, 10, 20), expected, **EXACT)


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(nms_pre=-1), r'has nms_pre=-1\. Set model\.test_cfg\.nms_pre to a number of boxes, or export without --nms'),
    (dict(max_per_img=0), r'has max_per_img=0\. Set'),
    (dict(min_bbox_size=12), r'this test_cfg has min_bbox_size=12\. Set model\.test_cfg\.min_bbox_size to 0'),
    (dict(score_thr=-0.1), r'has score_thr=-0\.1\. Set model\.test_cfg\.score_thr to 0 or more'),
    (dict(nms=dict(AGNOSTIC, type='soft_nms')), r'plain NMS, and this test_cfg has nms=.*soft_nms')])
def test_settings_that_no_graph_of_fixed_sizes_can_follow(settings, message):
    with pytest.raises(UserError, match=message):
        with_nms('RetinaNet', settings)


def test_boxes_that_are_clipped_in_another_way():
    """mmdet 1's coder keeps them within width - 1; the coders of today within the width."""
    cfg = Config(dict(model=retinanet_config(), default_scope='mmdet'))
    coder = cfg.model.bbox_head.get('bbox_coder', dict(target_means=[0.] * 4, target_stds=[1.] * 4))
    for name in ('DeltaXYWHBBoxCoder', 'LegacyDeltaXYWHBBoxCoder'):
        cfg.model.bbox_head.bbox_coder = dict(coder, type=name)
        model = build_model(cfg)
        if name.startswith('Delta'):
            assert network_of(model).levels
            continue
        with pytest.raises(UserError, match='RetinaNet with RetinaHead and LegacyDeltaXYWHBBoxCoder is none of them'):
            network_of(model)
