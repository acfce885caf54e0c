"""Faster R-CNN, Mask R-CNN and Cascade R-CNN for export against mmdet's own predictions, as networks and as engines."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import randomise_norms, two_stage_config
from mmengine.config import Config
from pycocotools.mask import area, encode, toBbox
from tool_runs import ROOT
from torch import Tensor, nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.engine.model import EngineModel
from repvgg_mm.engine.openvino_file import openvino_core
from repvgg_mm.export.export import export
from repvgg_mm.export.networks import Preprocess, network_of
from repvgg_mm.export.onnx_graph import to_onnx, without_threshold
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.openmmlab.preprocessing import Preprocessing

SIZE = (128, 160)
CLASS_AGNOSTIC = dict(type='nms', iou_threshold=0.5, class_agnostic=True)


def config(name: str, **changes: object) -> Config:
    cfg = Config(dict(model=two_stage_config('fasterrcnn' if name == 'cascade' else name), default_scope='mmdet'))
    cfg.model.train_cfg = None
    if name == 'cascade':
        head = cfg.model.roi_head
        heads = [copy.deepcopy(head.bbox_head) for _ in range(3)]
        for stage, one in enumerate(heads):
            one.bbox_coder.target_stds = [0.1 / (stage + 1)] * 2 + [0.2 / (stage + 1)] * 2
            one.reg_class_agnostic = stage != 1  # a cascade in the field has one box for all classes
        head.update(type='CascadeRoIHead', num_stages=3, stage_loss_weights=[1, 0.5, 0.25], bbox_head=heads)
        cfg.model.type = 'CascadeRCNN'
    cfg.merge_from_dict(changes)
    return cfg


def detector(name: str, **changes: object) -> tuple[nn.Module, Config]:
    """With scores spread between 0 and 1 and boxes that differ, so that each limit has work to do."""
    torch.manual_seed(0)
    cfg = config(name, **changes)
    model = randomise_norms(build_model(cfg)).eval()
    heads = model.roi_head.bbox_head if name == 'cascade' else [model.roi_head.bbox_head]
    with torch.no_grad():
        model.rpn_head.rpn_cls.weight.mul_(0.5)
        model.rpn_head.rpn_reg.weight.mul_(0.03)
        for head in heads:
            head.fc_reg.weight.mul_(0.3)
            if name == 'cascade':
                head.fc_cls.weight.mul_(3)  # logits are a mean
    return model, cfg


def images() -> Tensor:
    return torch.randint(256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def data() -> dict:
    """Of two images that were enlarged before the model sees them."""
    from mmdet.structures import DetDataSample
    sizes = dict(img_shape=SIZE, ori_shape=(64, 100), scale_factor=(1.6, 2.0))
    batch = images()
    return dict(inputs=list(batch), data_samples=[DetDataSample(metainfo=sizes) for _ in batch])


def predict(model: nn.Module) -> list:
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(data())]


def network(model: nn.Module, cfg: Config) -> nn.Module:
    return network_of(model, Preprocess(Preprocessing.of_config(cfg)))


def assert_equals_mmdet(outputs: list[Tensor], expected: list, limit: int, pixels: float = 0.01) -> None:
    """`outputs` are in pixels of the input, those of mmdet of the original image."""
    boxes, scores, labels = outputs[:3]
    assert boxes.shape == (2, limit, 4) and scores.shape == labels.shape == (2, limit)
    for i, wanted in enumerate(expected):
        count = len(wanted)
        assert count > 5 and len(wanted.labels.unique()) > 1
        assert (scores[i, :count] > 0).all() and (labels[i, count:] == -1).all() and not boxes[i, count:].any()
        torch.testing.assert_close(scores[i, :count], wanted.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(labels[i, :count], wanted.labels)
        scale = torch.tensor([1.6, 2.0, 1.6, 2.0])
        torch.testing.assert_close(boxes[i, :count] / scale, wanted.bboxes, rtol=0, atol=pixels)


@pytest.mark.parametrize('name, changes', [
    ('fasterrcnn', {}),
    ('fasterrcnn', {'model.test_cfg.rcnn.max_per_img': 7, 'model.test_cfg.rpn.nms_pre': 30}),
    ('fasterrcnn', {'model.test_cfg.rcnn.nms': CLASS_AGNOSTIC, 'model.test_cfg.rpn.nms': CLASS_AGNOSTIC}),
    ('fasterrcnn', {'model.roi_head.bbox_head.reg_class_agnostic': True, 'model.test_cfg.rcnn.score_thr': 0.2}),
    ('fasterrcnn', {'model.rpn_head.loss_cls.use_sigmoid': False, 'model.test_cfg.rpn.min_bbox_size': 40}),
    ('fasterrcnn', {f'model.test_cfg.{stage}.max_per_img': 3000 for stage in ('rpn', 'rcnn')}),  # more than there are
    ('maskrcnn', {}),
    ('cascade', {})])
def test_a_network_equals_mmdet(name, changes):
    model, cfg = detector(name, **changes)
    expected = predict(model)
    with torch.no_grad():
        outputs = network(model, cfg)(images().permute(0, 2, 3, 1).contiguous())
    assert_equals_mmdet(list(outputs), expected, cfg.model.test_cfg.rcnn.max_per_img)


def test_engines_of_a_cascade(tmp_path):
    model, cfg = detector('cascade')
    expected = predict(model)
    exported = network(whole_model_convert(model), cfg)
    x = images().permute(0, 2, 3, 1).contiguous()
    onnx.save(to_onnx(exported, x, exported.outputs), tmp_path / 'cascade.onnx')

    by_onnxruntime = onnxruntime.InferenceSession(tmp_path / 'cascade.onnx').run(None, dict(image=x.numpy()))
    compiled = openvino_core().compile_model(tmp_path / 'cascade.onnx', 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    by_openvino = [*compiled(x.numpy()).values()]
    for outputs in (by_onnxruntime, by_openvino):
        assert_equals_mmdet([*map(torch.from_numpy, outputs)], expected, 100)


@pytest.fixture(scope='module')
def maskrcnn(tmp_path_factory) -> tuple[nn.Module, Config, Path]:
    """With an exported engine."""
    folder = tmp_path_factory.mktemp('maskrcnn')
    model, cfg = detector('maskrcnn')
    whole_model_convert(model, save_path=folder / 'deploy.pth')
    target = Target(shape=SIZE, preprocess=True)
    export(cfg, Checkpoint.read(folder / 'deploy.pth'), folder / 'engine', target, progress=lambda step: None)
    return model, cfg, folder / 'engine' / 'engine.onnx'


def test_an_engine_of_mask_rcnn(maskrcnn):
    model, cfg, path = maskrcnn
    engine = Engine(path)
    assert engine.description.nms == 'inside'
    assert engine.description.outputs == ['boxes', 'scores', 'labels', 'masks']
    assert engine.description.test_cfg['rpn']['max_per_img'] == 12

    found = [sample.pred_instances for sample in EngineModel(cfg, engine).test_step(data())]
    for one, wanted in zip(found, predict(model)):
        assert len(one) == len(wanted) > 5 and wanted.masks.any()
        torch.testing.assert_close(one.bboxes, wanted.bboxes, rtol=0, atol=0.01)
        torch.testing.assert_close(one.scores, wanted.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.labels, wanted.labels)
        assert one.masks.shape == wanted.masks.shape == (len(wanted), 64, 100)
        assert (one.masks != wanted.masks).sum() <= 1e-4 * wanted.masks.sum()


def test_the_score_threshold_stands_in_the_graph_and_can_be_0(maskrcnn, tmp_path):
    """As the export compares it: in a random image a trained detector may find nothing."""
    model, _, path = maskrcnn
    onnx.save(without_threshold(onnx.load(path)), tmp_path / 'engine.onnx')
    x = images().permute(0, 2, 3, 1).contiguous().numpy()
    session = onnxruntime.InferenceSession(tmp_path / 'engine.onnx')
    by_image = [session.run(None, dict(image=image[None])) for image in x]
    outputs = [torch.from_numpy(np.concatenate(output)) for output in zip(*by_image)]

    lowered = copy.deepcopy(model)
    lowered.roi_head.test_cfg.score_thr = 0.
    expected = predict(lowered)
    assert all(len(more) > len(usual) for more, usual in zip(expected, predict(model)))
    assert_equals_mmdet(outputs, expected, 100)


def test_an_engine_of_openvino_has_the_same_masks(maskrcnn):
    _, _, path = maskrcnn
    x = images()[:1].permute(0, 2, 3, 1).contiguous().numpy()
    compiled = openvino_core().compile_model(path, 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    found = compiled(x)
    for name, expected in Engine(path)(x).items():
        torch.testing.assert_close(torch.from_numpy(found[name]), torch.from_numpy(expected), rtol=1e-4, atol=1e-3)


def test_the_metric_of_masks_is_that_of_the_checkpoint(maskrcnn, tmp_path):
    """By mmdet's CocoMetric, of generated images; the truth is some of what the checkpoint finds, a pixel aside."""
    model, cfg, path = maskrcnn
    shapes = make_shapes(tmp_path / 'shapes', num_train=1, num_val=3, size=64)
    cfg = masks_config(cfg, shapes)
    annotations = shapes / 'annotations/val.json'
    coco = json.loads(annotations.read_text())
    coco['annotations'] = [
        annotation for image in coco['images'] for annotation in found_masks(model, shapes, image)]
    for number, annotation in enumerate(coco['annotations'], 1):
        annotation['id'] = number
    annotations.write_text(json.dumps(coco))

    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'checkpoint.pth')
    expected = evaluate(cfg, Checkpoint.read(tmp_path / 'checkpoint.pth'))
    assert 0.05 < expected['coco/segm_mAP'] < 0.95 and expected['coco/segm_mAP'] != expected['coco/bbox_mAP']
    assert evaluate(cfg, Engine(path)) == pytest.approx(expected, abs=2e-3)


def masks_config(cfg: Config, shapes: Path) -> Config:
    """The test of the masks of generated shapes, enlarged to the engine's size, with the model of `cfg`."""
    whole = Config.fromfile(ROOT / 'configs/maskrcnn_repvgg_a0_shapes.py')
    whole.model = cfg.model
    loader = whole.test_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.data_root = str(shapes)
    loader.dataset.pipeline[1].update(scale=SIZE[::-1], keep_ratio=False)
    whole.test_evaluator.ann_file = str(shapes / 'annotations/val.json')
    whole.log_level = 'ERROR'
    return whole


def found_masks(model: nn.Module, shapes: Path, image: dict) -> list[dict]:
    """COCO's annotations of every second mask that mmdet finds in an image, moved by a pixel."""
    from mmcv import imread, imresize
    from mmdet.structures import DetDataSample
    picture = imresize(imread(shapes / 'images/val' / image['file_name']), SIZE[::-1])
    sizes = dict(img_shape=SIZE, ori_shape=(64, 64), scale_factor=(SIZE[1] / 64, SIZE[0] / 64))
    batch = dict(inputs=[torch.from_numpy(picture).permute(2, 0, 1)],
                 data_samples=[DetDataSample(metainfo=sizes)])
    with torch.no_grad():
        found = model.test_step(batch)[0].pred_instances[::2]

    annotations = []
    for mask, label in zip(found.masks.numpy(), found.labels.tolist()):
        moved = np.roll(mask, 1, axis=1)
        runs = encode(np.asfortranarray(moved.astype(np.uint8)))
        annotations.append(dict(
            image_id=image['id'], category_id=label + 1, iscrowd=0, bbox=toBbox(runs).tolist(), area=int(area(runs)),
            segmentation=dict(size=runs['size'], counts=runs['counts'].decode())))
    return annotations


def test_an_engine_without_masks_does_not_fit(maskrcnn):
    _, cfg, path = maskrcnn
    engine = Engine(path)
    engine.description.outputs.remove('masks')
    with pytest.raises(UserError, match='has no masks, the config a mask head'):
        EngineModel(cfg, engine)


def test_nothing_is_found(maskrcnn):
    _, cfg, path = maskrcnn
    model = EngineModel(cfg, Engine(path))
    outputs = model.run(images()[:1].float())
    outputs['labels'][:], sample = -1, data()['data_samples'][0]
    found, = model.detections(outputs, [sample])
    assert len(found) == 0 and found.masks.shape == (0, 64, 100)


@pytest.mark.parametrize('changes, message', [
    ({'model.rpn_head.bbox_coder.clip_border': False}, 'FasterRCNN with DeltaXYWHBBoxCoder is none of them'),
    ({'model.roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'}, 'SingleRoIExtractor is none of them'),
    ({'model.roi_head.bbox_roi_extractor.type': 'GenericRoIExtractor'}, 'GenericRoIExtractor is none of them'),
    ({'model.roi_head.type': 'DoubleHeadRoIHead', 'model.roi_head.reg_roi_scale_factor': 1.3},
     r'DoubleHeadRoIHead is none of them\. Supported are Faster R-CNN, Mask'),
    ({'model.test_cfg.rpn.nms_pre': -1}, r'has rpn\.nms_pre=-1\. Set model\.test_cfg\.rpn\.nms_pre to a number'),
    ({'model.test_cfg.rcnn.max_per_img': -1}, r'has rcnn\.max_per_img=-1\. Set'),
    ({'model.test_cfg.rcnn.nms.type': 'soft_nms'}, "suppressed by plain NMS.*'soft_nms'"),
    ({'model.test_cfg.rcnn.score_thr': -0.1}, r'has rcnn\.score_thr=-0\.1\. Set')])
def test_detectors_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        network_of(build_model(config('fasterrcnn', **changes)))
