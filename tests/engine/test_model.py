"""An engine in the place of a toolbox's model: what it predicts, and which configs it does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import Trained

from repvgg_mm import UserError
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.engine.model import EngineModel

pytestmark = pytest.mark.stack


def without_names(trained: Trained, name: str) -> Engine:
    """An engine that does not say which classes it knows."""
    engine = trained.engine(name)
    engine.description = replace(engine.description, classes=None)
    return engine


@pytest.mark.parametrize('name', ['onnx', 'uint8', 'nms'])
def test_boxes_of_a_batch_are_those_of_mmdet(name, retinanet):
    from mmdet.structures import DetDataSample
    images = torch.randint(256, (2, 3, 80, 80), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)

    def data() -> dict:
        sizes = dict(img_shape=(80, 80), ori_shape=(64, 40), scale_factor=(2.0, 1.25))
        return dict(inputs=list(images), data_samples=[DetDataSample(metainfo=sizes) for _ in images])
    with torch.no_grad():
        expected = retinanet.model.test_step(data())
    for sample, wanted in zip(EngineModel(retinanet.cfg, retinanet.engine(name)).test_step(data()), expected):
        found, wanted = sample.pred_instances, wanted.pred_instances
        assert len(wanted) > 5
        torch.testing.assert_close(found.bboxes, wanted.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.labels, wanted.labels)


def test_suppression_inside_by_other_settings(retinanet):
    cfg = retinanet.cfg
    cfg.model.test_cfg.update(score_thr=0.3, max_per_img=7)
    with pytest.raises(UserError, match=(
            r'has suppression inside with test_cfg\.score_thr=0\.05, max_per_img=100, the config score_thr=0\.3, '
            r'max_per_img=7\. Give that config')):
        EngineModel(cfg, retinanet.engine('nms'))


def test_slide_inference_calls_the_engine_for_each_window(segmentor):
    cfg = segmentor.cfg
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(32, 32))
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 128)  # four windows, and no padding
    expected = evaluate(cfg, segmentor.checkpoint)
    assert evaluate(cfg, segmentor.engine('onnx')) == pytest.approx(expected, rel=1e-3)


def test_one_channel_labels(segmentor):
    cfg = segmentor.cfg
    for head in ('decode_head', 'auxiliary_head'):
        cfg.model[head].update(num_classes=2, out_channels=1, threshold=0.4)
    labels = np.arange(4, dtype=np.uint8).reshape(1, 2, 2) % 2
    model = EngineModel(cfg, without_names(segmentor, 'labels'))
    model.run = lambda images: dict(labels=labels)
    images = torch.zeros(1, 3, 2, 2)
    assert (model.logits(images, [])[:, 0].sigmoid() > 0.4).tolist() == (labels == 1).tolist()
    model.run = lambda images: dict(labels=labels + 1)
    with pytest.raises(UserError, match='has 3 classes, the config 2'):
        model.logits(images, [])


@pytest.mark.parametrize(('name', 'change', 'message'), [
    ('onnx', {'model.decode_head.num_classes': 5}, r'has 6 classes \(background, disk.*the config 5\. Give that con'),
    ('onnx', {'model.data_preprocessor.bgr_to_rgb': False}, 'has preprocessing with swap_channels=True, the config Fa'),
    ('uint8', {'model.data_preprocessor.mean': [0, 0, 0]}, r'preprocessing with mean=\[123.67.*the config \[0, 0, 0\]'),
    ('onnx', {'test_dataloader.dataset.pipeline.1.scale': (100, 100)},
     r'takes float32 images of \(1, 3, 96, 96\) .*got float32 of \(1, 3, 128, 128\).*--shape H W or --dynamic')])
def test_engines_that_do_not_fit_the_config(name, change, message, segmentor):
    cfg = segmentor.cfg
    cfg.merge_from_dict(change)
    with pytest.raises(UserError, match=message):
        evaluate(cfg, segmentor.engine(name))


def test_images_that_are_normalised_already(segmentor):
    model = EngineModel(segmentor.cfg, segmentor.engine('uint8'))
    with pytest.raises(UserError, match=r'normalises images of whole numbers .* gives values from -0\.5 to -0\.5'):
        model.run(torch.full((1, 3, 80, 80), -0.5))


def test_engines_of_another_task(segmentor, retinanet):
    with pytest.raises(UserError, match=r'has detection, the config segmentation\. Give that config'):
        evaluate(segmentor.cfg, retinanet.engine('onnx'))
    with pytest.raises(UserError, match='has segmentation, the config detection'):
        evaluate(retinanet.cfg, segmentor.engine('onnx'))


def test_classes_are_counted_where_the_engine_does_not_name_them(segmentor, retinanet):
    for trained, part in ((segmentor, 'decode_head'), (retinanet, 'bbox_head')):
        cfg = trained.cfg
        cfg.model[part].num_classes = 4
        model = EngineModel(cfg, without_names(trained, 'onnx'))
        outputs = model.run(torch.zeros(1, 3, 96, 96))
        with pytest.raises(UserError, match=r'has [36] classes, the config 4\.'):
            model.logits(torch.zeros(1, 3, 96, 96), []) if part == 'decode_head' else model.detections(outputs, [None])


def test_an_engine_only_predicts(segmentor):
    with pytest.raises(UserError, match=r"mode='loss' was asked for\. Use the checkpoint"):
        EngineModel(segmentor.cfg, segmentor.engine('onnx')).forward(torch.zeros(1, 3, 96, 96), mode='loss')
