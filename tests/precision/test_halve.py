"""Engines in fp16: what the tool writes and says, types of inputs and outputs, and the limit of the metric."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from detectors import detector
from engines import quiet
from helpers import pspnet_config
from mmengine.config import Config
from tool_runs import run_tool

from repvgg_mm import UserError
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.description import Half
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.precision import halve
from repvgg_mm.precision.graph import producers_of
from repvgg_mm.precision.metric import headline, validation_config

pytestmark = pytest.mark.stack
SIZE = 48
FP16 = Target(precision='fp16', shape=(SIZE, SIZE), calib_images=2, max_drop=100)


def test_what_the_tool_writes_and_says(run, cfg):
    result = run_tool('tools/export.py', run / 'config.py', run / 'checkpoint.pth', '--out', run / 'half',
                      '--precision', 'fp16', '--calib-images', 2, '--max-drop', 100)
    meta = json.loads((run / 'half/engine.json').read_text())
    engine = Engine(run / 'half/engine.onnx')
    assert meta['precision'] == 'fp16' and meta['input']['dtype'] == 'float32' and meta['half']['float32'] == []
    assert meta['half']['images'] == 2 and meta['half']['of_training_set'] and meta['tolerance'] == 0.0125
    assert headline(evaluate(validation_config(cfg), engine)) == ('mIoU', meta['half']['metric_half'])
    assert 'Relative error on 1x3x48x48: logits' in result.stdout
    assert f'mIoU on validation: {meta["half"]["metric_float32"]:.2f} in float32' in result.stdout
    shutil.rmtree(run / 'half')


@pytest.mark.parametrize('preprocess, argmax', [(False, False), (True, True)])
def test_inputs_and_outputs_in_half(preprocess, argmax, cfg, checkpoint, tmp_path):
    target = replace(FP16, io_dtype='float16', preprocess=preprocess, argmax=argmax)
    exported = export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    engine = Engine(exported.path)
    assert engine.description.input.dtype == ('uint8' if preprocess else 'float16')
    output, = engine(exported.inputs[0].numpy()).values()
    assert output.dtype == (np.uint8 if argmax else np.float16)
    assert exported.description.half.metric == 'mIoU'


def test_without_data_it_is_written_and_not_measured(tmp_path):
    cfg = Config(dict(model=pspnet_config(), default_scope='mmseg'))
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'checkpoint.pth')
    said = []
    target = replace(FP16, dynamic=True)
    exported = export(
        cfg, Checkpoint.read(tmp_path / 'checkpoint.pth'), tmp_path / 'out', target, progress=said.append)
    assert exported.description.half == Half([], images=2, of_training_set=False)
    assert 'Looking for numbers beyond float16 on 2 random images' in said
    larger = np.zeros((2, 3, 64, 80), np.float32)
    assert Engine(exported.path)(larger)['logits'].shape == (2, 3, 64, 80)


def test_past_max_drop_nothing_is_written(cfg, checkpoint, tmp_path, monkeypatch):
    """Of what it computes only the metric is made up: a loss of 0.4 points, then a gain."""
    target = replace(FP16, max_drop=0.3)
    metrics = iter([50., 49.6, 49.6, 50.])
    monkeypatch.setattr(halve, 'evaluate', lambda cfg, engine: dict(mIoU=next(metrics)))
    with pytest.raises(UserError, match=r'may lose 0\.3 points of mIoU .* reached 49\.60 instead of 50\.00\. Nothing'):
        export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    assert list(tmp_path.iterdir()) == []

    exported = export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    assert exported.description.half.drop == -0.4


def test_what_leaves_the_range_is_named_and_stays_in_float32(run):
    """The stem gives a million times as much, and the next block takes it back: the same network."""
    content = torch.load(run / 'checkpoint.pth', weights_only=True)
    for name, tensor in content['state_dict'].items():
        if name.startswith('backbone.stem') and name.endswith(('norm.weight', 'norm.bias')):
            tensor.mul_(1e6)
        if name.startswith('backbone.stage_1.0') and name.endswith('conv.weight'):
            tensor.mul_(1e-6)
    torch.save(content, run / 'large.pth')

    result = run_tool('tools/export.py', run / 'config.py', run / 'large.pth', '--out', run / 'large', '--precision',
                      'fp16', '--calib-images', 2, '--max-drop', 100)
    half = json.loads((run / 'large/engine.json').read_text())['half']
    assert any('backbone.stem' in name for name in half['float32'])
    assert not any('backbone.stage_2' in name for name in half['float32'])
    assert 'In float32, since float16 ends at 65504: ' in result.stdout
    shutil.rmtree(run / 'large')


def test_a_detectors_boxes_are_decoded_in_float32(tmp_path):
    model, cfg = detector('RetinaNet')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'checkpoint.pth')
    checkpoint = Checkpoint.read(tmp_path / 'checkpoint.pth')
    exported = export(cfg, checkpoint, tmp_path / 'out', replace(FP16, shape=(64, 96)), progress=quiet)
    producers = producers_of(onnx.load(exported.path))
    assert producers['boxes'].op_type == producers['scores'].op_type == 'Concat'  # not a cast behind it


@pytest.mark.parametrize('changes, message', [
    (dict(engine='openvino', precision='fp16'), r'stand in its ONNX graph, and --engine openvino .* Leave --engine'),
    (dict(precision='fp32', io_dtype='float16'), r'float16 in fp16 alone, and --io-dtype float16 was asked for in f')])
def test_what_does_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        Target(**changes)
