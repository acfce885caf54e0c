"""Engines in the toolboxes' own test loop, in the benchmark, and in the documented program without torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import detector, predict
from helpers import pspnet_config, randomise_norms
from mmengine.config import Config
from mmengine.fileio import load
from tool_runs import ROOT, assert_refused, derived_config, metric, run_tool

from repvgg_mm import UserError
from repvgg_mm.demo.shapes import CLASSES, make_shapes
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.engine.model import EngineModel
from repvgg_mm.export.export import Target, export, shape_of_tests
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.report.benchmark import Setting, benchmark, load_engines, table

pytestmark = pytest.mark.stack
RESIZED = 80  # images of 64x64 are resized to it, and padded to 96 where the model sees them
TARGETS = dict(
    onnx=Target('onnx', shape=(96, 96)), openvino=Target('openvino', shape=(96, 96)),
    uint8=Target('openvino', shape=(80, 80), preprocess=True),
    labels=Target('onnx', shape=(80, 80), dynamic=True, preprocess=True, argmax=True))
DETECTED = ('disk', 'ring', 'square')
WITHOUT_TORCH = ('import sys; sys.modules.update(dict.fromkeys(["torch", "mmengine", "mmcv", "mmseg", "mmdet", '
                 '"repvgg_mm"])); exec(open(sys.argv[1]).read())')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=1, num_val=3, size=64)


def write_config(path: Path, model: dict, shapes: Path, base: str, resize: int, dataset: dict, evaluator: dict) -> Path:
    """A config of the package with another model, a batch of two, and images resized before the model sees them."""
    pipeline = Config.fromfile(ROOT / base).test_dataloader.dataset.pipeline
    pipeline = [step.to_dict() for step in pipeline if step.type != 'Resize']
    pipeline.insert(1, dict(type='Resize', scale=(resize, resize), keep_ratio=True))
    loader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                  dataset=dict(data_root=str(shapes), pipeline=pipeline, **dataset))
    return derived_config(path, f'model = dict(_delete_=True, **{model})\ntest_dataloader = {loader}\n'
                                f'val_dataloader = test_dataloader\ntest_evaluator = {evaluator}', base)


class Trained:
    """A config with a checkpoint, and engines of it made when they are asked for."""

    def __init__(self, path: Path, model: torch.nn.Module, classes: tuple[str, ...]) -> None:
        self.path, self.model, self.folder = path, model, path.parent
        self.checkpoint = self.folder / 'checkpoint.pth'
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), self.checkpoint)

    @property
    def cfg(self) -> Config:
        cfg = Config.fromfile(self.path)
        cfg.log_level = 'ERROR'
        return cfg

    def engine(self, name: str) -> Path:
        out = self.folder / name
        if not out.exists():
            export(self.cfg, self.checkpoint, out, TARGETS[name], progress=lambda step: None)
        return out / ('engine.onnx' if TARGETS[name].engine == 'onnx' else 'engine.xml')


@pytest.fixture(scope='module')
def segmentor(shapes, tmp_path_factory) -> Trained:
    model = pspnet_config()
    for head in ('decode_head', 'auxiliary_head'):
        model[head]['num_classes'] = len(CLASSES)
    model['data_preprocessor'].update(test_cfg=dict(size_divisor=32), size=(96, 96))
    del model['data_preprocessor']['size_divisor']
    path = write_config(tmp_path_factory.mktemp('segmentor') / 'pspnet.py', model, shapes,
                        'configs/pspnet_repvgg_a0_shapes.py', RESIZED, {}, {})
    torch.manual_seed(0)
    return Trained(path, randomise_norms(build_model(Config.fromfile(path))).eval(), CLASSES)


@pytest.fixture(scope='module')
def retinanet(shapes, tmp_path_factory) -> Trained:
    """Its annotations are what it finds in the images at their own size, so that its mAP is neither 0 nor 1."""
    folder = tmp_path_factory.mktemp('retinanet')
    model, cfg = detector('RetinaNet')
    annotations = dict(images=[], annotations=[], categories=[
        dict(id=i, name=name) for i, name in enumerate(DETECTED)])
    for number, file in enumerate(sorted((shapes / 'images/val').glob('*.jpg'))):
        annotations['images'].append(dict(id=number, file_name=file.name, height=64, width=64))
        from mmcv import imread
        found = predict(model, torch.from_numpy(imread(file)).permute(2, 0, 1))[:20]
        for (x1, y1, x2, y2), label in zip(found.bboxes.tolist(), found.labels.tolist()):
            annotations['annotations'].append(dict(
                id=len(annotations['annotations']) + 1, image_id=number, category_id=label, iscrowd=0,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1)))
    (folder / 'found.json').write_text(json.dumps(annotations))
    path = write_config(
        folder / 'retinanet.py', cfg.model.to_dict(), shapes, 'configs/retinanet_repvgg_a0_shapes.py', RESIZED,
        dict(ann_file=str(folder / 'found.json'), metainfo=dict(classes=DETECTED)),
        dict(ann_file=str(folder / 'found.json')))
    return Trained(path, model, DETECTED)


def test_mean_iou_of_each_engine(segmentor):
    expected = evaluate(segmentor.cfg, segmentor.checkpoint)
    assert 1 < expected['mIoU'] < 60
    cfg = segmentor.cfg
    cfg.custom_hooks = [dict(type='EMAHook')]  # it copies the model
    for name, tolerance in dict(onnx=1e-3, openvino=1e-3, uint8=1e-3, labels=0.1).items():
        assert evaluate(cfg, segmentor.engine(name)) == pytest.approx(expected, rel=tolerance), name


def test_average_precision_of_each_engine(retinanet):
    expected = evaluate(retinanet.cfg, retinanet.checkpoint)
    assert 0.05 < expected['coco/bbox_mAP'] < 0.95
    for name in ('onnx', 'openvino', 'uint8'):
        assert evaluate(retinanet.cfg, retinanet.engine(name)) == pytest.approx(expected, abs=1e-3), name


@pytest.mark.parametrize('name', ['onnx', 'uint8'])
def test_boxes_of_a_batch_are_those_of_mmdet(name, retinanet):
    from mmdet.structures import DetDataSample
    images = torch.randint(256, (2, 3, 80, 80), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)

    def data() -> dict:
        sizes = dict(img_shape=(80, 80), ori_shape=(64, 40), scale_factor=(2.0, 1.25))
        return dict(inputs=list(images), data_samples=[DetDataSample(metainfo=sizes) for _ in images])
    with torch.no_grad():
        expected = retinanet.model.test_step(data())
    for sample, wanted in zip(EngineModel(retinanet.cfg, Engine(retinanet.engine(name))).test_step(data()), expected):
        found, wanted = sample.pred_instances, wanted.pred_instances
        assert len(wanted) > 5
        torch.testing.assert_close(found.bboxes, wanted.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.labels, wanted.labels)


def test_slide_inference_calls_the_engine_for_each_window(segmentor):
    cfg = segmentor.cfg
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(32, 32))
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 128)  # four windows, and no padding
    expected = evaluate(cfg, segmentor.checkpoint)
    assert evaluate(cfg, segmentor.engine('onnx')) == pytest.approx(expected, rel=1e-3)


def test_the_last_head_of_a_cascade(segmentor, tmp_path):
    cfg = segmentor.cfg
    first = dict(cfg.model.auxiliary_head, in_index=3, in_channels=cfg.model.decode_head.in_channels)
    last = dict(type='OCRHead', in_index=3, in_channels=first['in_channels'], channels=8, ocr_channels=8,
                num_classes=len(CLASSES), norm_cfg=dict(type='BN'), align_corners=False,
                loss_decode=dict(type='CrossEntropyLoss'))
    cfg.model.update(type='CascadeEncoderDecoder', num_stages=2, auxiliary_head=None)
    cfg.model.decode_head = [first, last]
    torch.manual_seed(0)
    model = randomise_norms(build_model(cfg)).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'checkpoint.pth')
    engine = export(cfg, tmp_path / 'checkpoint.pth', tmp_path / 'out', TARGETS['onnx'], progress=lambda step: None)
    expected = evaluate(cfg, tmp_path / 'checkpoint.pth')
    assert evaluate(cfg, engine.path) == pytest.approx(expected, rel=1e-3) and 0 < expected['mIoU'] < 100


def test_the_size_of_an_engine_is_that_of_a_test(segmentor, tmp_path):
    cfg = segmentor.cfg
    assert shape_of_tests(cfg, segmentor.model, preprocess=True) == (RESIZED, RESIZED)
    assert shape_of_tests(cfg, segmentor.model, preprocess=False) == (96, 96)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 32), stride=(16, 16))
    assert shape_of_tests(cfg, segmentor.model, preprocess=False) == (64, 32)
    cfg = segmentor.cfg
    cfg.val_dataloader.dataset.data_root = str(tmp_path / 'absent')
    cfg.model.data_preprocessor.size = (40, 56)
    assert shape_of_tests(cfg, segmentor.model, preprocess=True) == (40, 56)


def test_one_channel_labels(segmentor):
    cfg = segmentor.cfg
    for head in ('decode_head', 'auxiliary_head'):
        cfg.model[head].update(num_classes=2, out_channels=1, threshold=0.4)
    labels = np.arange(4, dtype=np.uint8).reshape(1, 2, 2) % 2
    engine = Engine(segmentor.engine('labels'))
    engine.meta['classes'] = None
    model = EngineModel(cfg, engine)
    model.run = lambda images: dict(labels=labels)
    images = torch.zeros(1, 3, 2, 2)
    assert (model.logits(images, [])[:, 0].sigmoid() > 0.4).tolist() == (labels == 1).tolist()
    model.run = lambda images: dict(labels=labels + 1)
    with pytest.raises(UserError, match='has 3 classes, the config 2'):
        model.logits(images, [])


def test_the_test_tool_writes_masks_and_pictures(segmentor, tmp_path):
    run_tool('tools/test.py', segmentor.path, segmentor.engine('onnx'), '--work-dir', tmp_path / 'work', '--out',
             tmp_path / 'masks', '--show-dir', tmp_path / 'pictures')
    assert metric(tmp_path / 'work') == pytest.approx(evaluate(segmentor.cfg, segmentor.checkpoint)['mIoU'], rel=1e-3)
    assert len(list((tmp_path / 'masks').glob('*.png'))) == len(list((tmp_path / 'pictures').rglob('*.png'))) == 3


def test_a_config_without_a_test_set_writes_masks_of_its_validation_set(segmentor, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = ['{segmentor.path}']\ntest_dataloader = None\ntest_evaluator = None\n"
                      'test_cfg = None\n')
    run_tool('tools/test.py', config, segmentor.checkpoint, '--work-dir', tmp_path / 'work', '--out',
             tmp_path / 'masks')
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 3
    with pytest.raises(UserError, match='neither test_evaluator nor val_evaluator'):
        evaluate(Config.fromfile(derived_config(tmp_path / 'none.py', 'val_evaluator = None', config)),
                 segmentor.checkpoint)


def test_an_annotation_that_is_missing(segmentor, tmp_path):
    cfg = segmentor.cfg
    shutil.copytree(cfg.test_dataloader.dataset.data_root, tmp_path / 'shapes')
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'shapes')
    gone = sorted((tmp_path / 'shapes/labels/val').iterdir())[1]
    gone.unlink()
    with pytest.raises(UserError, match=rf'every image and annotation .*{gone.name}.*Put it there'):
        evaluate(cfg, segmentor.checkpoint)


def test_the_test_tool_writes_boxes(retinanet, tmp_path):
    run_tool('tools/test.py', retinanet.path, retinanet.engine('uint8'), '--work-dir', tmp_path / 'work', '--out',
             tmp_path / 'boxes.pkl', '--cfg-options', 'model.test_cfg.max_per_img=7')
    assert 0 < metric(tmp_path / 'work', 'coco/bbox_mAP') < 1
    assert [len(sample['pred_instances']['scores']) for sample in load(tmp_path / 'boxes.pkl')] == [7, 7, 7]


def test_the_test_tool_refuses_in_one_message(segmentor, tmp_path):
    engine = segmentor.engine('onnx')
    tta = run_tool('tools/test.py', segmentor.path, engine, '--tta', '--work-dir', tmp_path, check=False)
    assert_refused(tta, '--tta predicts images of several sizes', f'{engine} is an engine. Give the checkpoint')


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
    model = EngineModel(segmentor.cfg, Engine(segmentor.engine('uint8')))
    with pytest.raises(UserError, match=r'normalises images of whole numbers .* gives values from -0\.5 to -0\.5'):
        model.run(torch.full((1, 3, 80, 80), -0.5))


def test_both_toolboxes_in_the_same_second(segmentor, retinanet, monkeypatch):
    monkeypatch.setattr('time.strftime', lambda *_: '20260101_000000')
    for trained in (segmentor, retinanet, segmentor, retinanet):
        assert evaluate(trained.cfg, trained.engine('openvino'))


def test_engines_of_another_task(segmentor, retinanet):
    with pytest.raises(UserError, match=r'has detection, the config segmentation\. Give that config'):
        evaluate(segmentor.cfg, retinanet.engine('onnx'))
    with pytest.raises(UserError, match='has segmentation, the config detection'):
        evaluate(retinanet.cfg, segmentor.engine('onnx'))


def test_classes_are_counted_where_the_engine_does_not_name_them(segmentor, retinanet):
    for trained, part in ((segmentor, 'decode_head'), (retinanet, 'bbox_head')):
        engine, cfg = Engine(trained.engine('onnx')), trained.cfg
        engine.meta['classes'] = None
        cfg.model[part].num_classes = 4
        model = EngineModel(cfg, engine)
        outputs = model.run(torch.zeros(1, 3, 96, 96))
        with pytest.raises(UserError, match=r'has [36] classes, the config 4\.'):
            model.logits(torch.zeros(1, 3, 96, 96), []) if part == 'decode_head' else model.detections(outputs, [None])


def test_evaluating_uses_the_weights_it_is_given_and_the_validation_set(segmentor):
    cfg, expected = segmentor.cfg, evaluate(segmentor.cfg, segmentor.checkpoint)
    cfg.load_from, cfg.resume = str(segmentor.folder / 'absent.pth'), True
    for part in ('dataloader', 'evaluator', 'cfg'):
        cfg.pop(f'test_{part}')
    assert evaluate(cfg, segmentor.checkpoint) == expected
    cfg.pop('val_dataloader')
    with pytest.raises(UserError, match=r'neither test_dataloader nor val_dataloader\. Add one'):
        evaluate(cfg, segmentor.checkpoint)


def test_an_engine_only_predicts(segmentor):
    with pytest.raises(UserError, match=r"mode='loss' was asked for\. Use the checkpoint"):
        EngineModel(segmentor.cfg, Engine(segmentor.engine('onnx'))).forward(torch.zeros(1, 3, 96, 96), mode='loss')


def test_engines_are_rows_of_a_benchmark(segmentor):
    engines = load_engines([segmentor.engine('onnx'), segmentor.engine('labels')])
    setting = Setting(torch.randn(1, 3, 96, 96), rounds=2)
    rows = benchmark({'model': segmentor.model}, setting, ['forward', 'norm_eval step'], engines)
    assert [(row.model, row.work) for row in rows] == [
        ('model', 'forward'), *((name, 'forward') for name in engines), ('model', 'norm_eval step')]
    assert next(iter(engines)) == f'onnxruntime fp32, {segmentor.engine("onnx")}'
    assert all(row.lower_ms <= row.median_ms <= row.upper_ms and row.gflops is None for row in rows[1:3])
    assert table(rows).splitlines()[3].endswith(' |  |  |  |  |')
    with pytest.raises(UserError, match=r'Engines only do forward calls, and --work is training step\. Add fo'):
        benchmark({}, setting, ['training step'], engines)
    with pytest.raises(UserError, match=r'takes float32 images of \(1, 3, 96, 96\).*got float32 of \(2, 3, 96, 96\)'):
        benchmark({}, Setting(torch.randn(2, 3, 96, 96)), ['forward'], engines)


def test_the_benchmark_tool_takes_engines(segmentor, tmp_path):
    result = run_tool('tools/benchmark.py', segmentor.engine('onnx'), '--shape', 96, 96, '--rounds', 2, '--json',
                      tmp_path / 'figures.json', '--plot', tmp_path / 'picture.png', '--report',
                      tmp_path / 'report.html')
    assert 'onnxruntime fp32' in (tmp_path / 'report.html').read_text()
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert 'onnxruntime' in figures['conditions'] and figures['rows'][0]['gflops'] is None
    assert f'| onnxruntime fp32, {segmentor.engine("onnx")} | forward |' in result.stdout


@pytest.mark.parametrize('library', ['onnxruntime', 'openvino'])
def test_the_readmes_program_runs_without_torch(library, segmentor, tmp_path):
    programs = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/export.md').read_text(), re.DOTALL)
    program, = (text for text in programs if f'import {library}\n' in text)
    assert len(program.splitlines()) <= 15
    engine = dict(onnxruntime='onnx', openvino='openvino')[library]
    target = Target(engine, shape=(96, 96), preprocess=True, argmax=True)
    export(segmentor.cfg, segmentor.checkpoint, tmp_path / 'work_dirs/engine', target, progress=lambda step: None)
    (tmp_path / 'program.py').write_text(program)
    result = subprocess.run([sys.executable, '-c', WITHOUT_TORCH, 'program.py'], cwd=tmp_path, capture_output=True,
                            text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    labels = Engine(next((tmp_path / 'work_dirs/engine').glob('engine.[ox]*[xl]')))(
        np.full((1, 96, 96, 3), 128, np.uint8))['labels']
    assert {name for name in CLASSES if name in result.stdout} == {CLASSES[label] for label in np.unique(labels)}
    shutil.rmtree(tmp_path / 'work_dirs')
    gone = subprocess.run([sys.executable, '-c', WITHOUT_TORCH.replace('exec', 'import torch; exec'), 'program.py'],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert 'import of torch halted' in gone.stderr  # the isolation isolates
