"""The metric of checkpoints and engines by the toolboxes' own test loop, from Python and from tools/test.py."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from engines import TARGETS, quiet
from helpers import randomise_norms
from mmengine.config import Config
from mmengine.fileio import load
from tool_runs import assert_refused, derived_config, metric, run_tool

from repvgg_mm import UserError
from repvgg_mm.demo.shapes import CLASSES
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate, open_weights
from repvgg_mm.export.export import export
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack


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
    for name in ('onnx', 'openvino', 'uint8', 'nms'):
        assert evaluate(retinanet.cfg, retinanet.engine(name)) == pytest.approx(expected, abs=1e-3), name


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
    checkpoint = Checkpoint.read(tmp_path / 'checkpoint.pth')
    exported = export(cfg, checkpoint, tmp_path / 'out', TARGETS['onnx'], progress=quiet)
    expected = evaluate(cfg, checkpoint)
    assert evaluate(cfg, Engine(exported.path)) == pytest.approx(expected, rel=1e-3) and 0 < expected['mIoU'] < 100


def test_evaluating_uses_the_weights_it_is_given_and_the_validation_set(segmentor):
    cfg, expected = segmentor.cfg, evaluate(segmentor.cfg, segmentor.checkpoint)
    cfg.load_from, cfg.resume = str(segmentor.folder / 'absent.pth'), True
    for part in ('dataloader', 'evaluator', 'cfg'):
        cfg.pop(f'test_{part}')
    assert evaluate(cfg, segmentor.checkpoint) == expected
    cfg.pop('val_dataloader')
    with pytest.raises(UserError, match=r'neither test_dataloader nor val_dataloader\. Add one'):
        evaluate(cfg, segmentor.checkpoint)


def test_an_annotation_that_is_missing(segmentor, tmp_path):
    cfg = segmentor.cfg
    shutil.copytree(cfg.test_dataloader.dataset.data_root, tmp_path / 'shapes')
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'shapes')
    gone = sorted((tmp_path / 'shapes/labels/val').iterdir())[1]
    gone.unlink()
    with pytest.raises(UserError, match=rf'every image and annotation .*{gone.name}.*Put it there'):
        evaluate(cfg, segmentor.checkpoint)


def test_both_toolboxes_in_the_same_second(segmentor, retinanet, monkeypatch):
    monkeypatch.setattr('time.strftime', lambda *_: '20260101_000000')
    for trained in (segmentor, retinanet, segmentor, retinanet):
        assert evaluate(trained.cfg, trained.engine('openvino'))


def test_a_config_without_a_test_set_writes_masks_of_its_validation_set(segmentor, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = ['{segmentor.path}']\ntest_dataloader = None\ntest_evaluator = None\n"
                      'test_cfg = None\n')
    run_tool('tools/test.py', config, segmentor.checkpoint_file, '--work-dir', tmp_path / 'work', '--out',
             tmp_path / 'masks')
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 3
    with pytest.raises(UserError, match='neither test_evaluator nor val_evaluator'):
        evaluate(Config.fromfile(derived_config(tmp_path / 'none.py', 'val_evaluator = None', config)),
                 segmentor.checkpoint)


def test_the_test_tool_writes_masks_and_pictures(segmentor, tmp_path):
    run_tool('tools/test.py', segmentor.path, segmentor.engine_file('onnx'), '--work-dir', tmp_path / 'work', '--out',
             tmp_path / 'masks', '--show-dir', tmp_path / 'pictures')
    assert metric(tmp_path / 'work') == pytest.approx(evaluate(segmentor.cfg, segmentor.checkpoint)['mIoU'], rel=1e-3)
    assert len(list((tmp_path / 'masks').glob('*.png'))) == len(list((tmp_path / 'pictures').rglob('*.png'))) == 3


def test_the_test_tool_writes_boxes(retinanet, tmp_path):
    run_tool('tools/test.py', retinanet.path, retinanet.engine_file('uint8'), '--work-dir', tmp_path / 'work', '--out',
             tmp_path / 'boxes.pkl', '--cfg-options', 'model.test_cfg.max_per_img=7')
    assert 0 < metric(tmp_path / 'work', 'coco/bbox_mAP') < 1
    assert [len(sample['pred_instances']['scores']) for sample in load(tmp_path / 'boxes.pkl')] == [7, 7, 7]


def test_the_test_tool_refuses_in_one_message(segmentor, tmp_path):
    engine = segmentor.engine_file('onnx')
    tta = run_tool('tools/test.py', segmentor.path, engine, '--tta', '--work-dir', tmp_path, check=False)
    assert_refused(tta, '--tta predicts images of several sizes', f'{engine} is an engine. Give the checkpoint')
    gpu = run_tool('tools/test.py', segmentor.path, engine, '--device', 'gpu', '--work-dir', tmp_path, check=False)
    assert_refused(gpu, 'onnxruntime runs an engine on cpu or cuda or tensorrt, and --device gpu was asked for')


def test_a_plan_on_a_machine_without_tensorrt(segmentor, tmp_path):
    if importlib.util.find_spec('tensorrt'):
        pytest.skip('TensorRT is installed')
    folder = shutil.copytree(segmentor.engine_file('onnx').parent, tmp_path / 'engine')
    (folder / 'engine.plan').write_bytes(b'a plan')
    result = run_tool('tools/test.py', segmentor.path, folder / 'engine.plan', '--work-dir', tmp_path, check=False)
    assert_refused(result, 'needs tensorrt, which cannot be imported', 'pip install tensorrt polygraphy')


def test_the_given_config_is_not_changed(segmentor):
    cfg = segmentor.cfg
    cfg.pop('test_dataloader')
    before = cfg.pretty_text
    evaluate(cfg, segmentor.checkpoint)
    evaluate(cfg, segmentor.engine('onnx'))
    assert cfg.pretty_text == before


def test_what_a_command_line_names(segmentor):
    engine = open_weights(segmentor.engine_file('onnx'))
    assert isinstance(engine, Engine) and engine.path == segmentor.engine_file('onnx')
    checkpoint = open_weights(str(segmentor.checkpoint_file))
    assert isinstance(checkpoint, Checkpoint) and checkpoint.sha256 == segmentor.checkpoint.sha256
    with pytest.raises(UserError, match=r'An engine is a file in .*absent\.onnx is missing'):
        open_weights('absent.onnx')
    with pytest.raises(UserError, match=r'absent\.pth is missing'):
        open_weights('absent.pth')


def test_only_what_is_unpickled_by_request(tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), meta=dict(when=NotAllowed())), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='--trust-checkpoint'):
        open_weights(tmp_path / 'a.pth')
    assert isinstance(open_weights(tmp_path / 'a.pth', trust=True).content['meta']['when'], NotAllowed)


class NotAllowed:
    """What a checkpoint may hold that only its writer knows."""
