"""Engines in int8: when the metric is kept, what stays in float32, and when they are refused."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from engines import quiet
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from tool_runs import ROOT, assert_refused, run_tool

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.description import Attempt, Description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.engine.openvino_file import openvino_core
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import export, load_deploy, prepare
from repvgg_mm.export.networks import Preprocess, network_of
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.data import validation_set
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.openmmlab.preprocessing import Preprocessing
from repvgg_mm.precision.equalise import equalise
from repvgg_mm.precision.graph import arrays_of, constants_of, convolutions_of, producers_of
from repvgg_mm.precision.layer_noise import LayerNoise, signal_to_noise
from repvgg_mm.precision.metric import validation_config
from repvgg_mm.precision.qdq import check_qdq
from repvgg_mm.precision.quantise import describe_attempt, next_attempt, noisiest, quantise_engine

pytestmark = pytest.mark.stack
SIZE = 48
INT8 = dict(precision='int8', shape=(SIZE, SIZE), calib_images=4)


@pytest.fixture(scope='module')
def exported(run) -> Path:
    """As the tool writes it; a random network may lose any number of points."""
    result = run_tool('tools/export.py', run / 'config.py', run / 'checkpoint.pth', '--out', run / 'engine', '--engine',
                      'openvino', '--precision', 'int8', '--calib-images', 4, '--max-drop', 100, '--verbose')
    (run / 'stdout').write_text(result.stdout)
    return run / 'engine'


def test_what_the_tool_writes_and_says(exported, cfg, checkpoint):
    assert sorted(path.name for path in exported.iterdir()) == ['engine.bin', 'engine.json', 'engine.xml']
    meta = json.loads((exported / 'engine.json').read_text(), parse_constant=pytest.fail)
    found = meta['quantisation']
    assert meta['precision'] == 'int8' and meta['tolerance'] == 1e-4
    assert meta['openvino_properties'] == {'INFERENCE_PRECISION_HINT': 'f32'}
    assert found['calib_images'] == 4 and found['metric'] == 'mIoU' and len(found['layers']) == 15
    assert found['tried'] == [dict(equalised=False, float32=[], metric=found['int8'], rounded=False)]
    quiet_cfg = validation_config(cfg)
    assert evaluate(quiet_cfg, Engine(exported / 'engine.xml'))['mIoU'] == found['int8']
    trained = evaluate(quiet_cfg, checkpoint)
    assert trained['mIoU'] == pytest.approx(found['float32'], abs=0.02)
    said = (exported.parent / 'stdout').read_text()
    for part in ('4/4', 'Quantising on 4 images', 'SNR, dB', 'backbone.stage_3.2.branch_reparam',
                 f'{found["float32"]:.2f} in float32, {found["int8"]:.2f} in int8.'):
        assert part in said
    assert b'.py' not in (exported / 'engine.xml').read_bytes()


def test_weights_are_whole_numbers_in_the_file(exported):
    network = openvino_core().read_model(exported / 'engine.xml')
    types = {node.get_element_type().get_type_name() for node in network.get_ordered_ops()
             if node.get_type_name() == 'Constant' and node.get_output_size() and len(node.get_output_shape(0)) == 4
             and np.prod(node.get_output_shape(0)) > 1000}
    assert types == {'i8'}


def test_a_graph_for_tensorrt(cfg, checkpoint, tmp_path):
    exported = export(cfg, checkpoint, tmp_path / 'out', Target('onnx', **INT8, max_drop=100), progress=quiet)
    model = onnx.load(exported.path)
    in_float32 = prepare(cfg, checkpoint, Target('onnx', shape=(SIZE, SIZE)), progress=quiet).graph
    check_qdq(model, convolutions_of(in_float32))
    description = Engine(exported.path).description
    assert (description.engine, description.precision) == ('onnx', 'int8') and description.openvino_properties == {}
    assert 'onnxruntime' in description.versions and 'nncf' not in description.versions
    assert evaluate(validation_config(cfg), Engine(exported.path))['mIoU'] == description.quantisation.int8
    assert b'.py' not in exported.path.read_bytes()


def test_past_max_drop_nothing_is_written(cfg, checkpoint, tmp_path):
    said = []
    with pytest.raises(UserError, match=(
            r'may lose -100 points of mIoU \(--max-drop\), and this one reached [\d.]+; '
            r'[\d.]+, weights rounded by GPTQ; [\d.]+, channels equalised, weights rounded by GPTQ; '
            r'[\d.]+,.* GPTQ, 2 convolutions in float32; [\d.]+,.* GPTQ, 4 .* float32; '
            r'instead of [\d.]+\. Nothing was written')):
        export(cfg, checkpoint, tmp_path / 'out', Target('onnx', **INT8, max_drop=-100), progress=said.append)
    assert list(tmp_path.iterdir()) == []
    rounding = [text for text in said if 'Rounding' in text]
    assert rounding == [f'Rounding weights, 0 of {count} done' for count in (15, 15, 13, 11)]


@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_any_size_and_images_as_they_are_read(engine, cfg, checkpoint, tmp_path):
    target = Target(engine, **INT8, max_drop=100, dynamic=True, preprocess=True)
    exported = export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    engine = Engine(exported.path)
    model, _ = load_deploy(cfg, checkpoint, target)
    reference = network_of(model, Preprocess(Preprocessing.of_config(cfg)))
    for shape in ((1, SIZE, SIZE, 3), (2, 61, 75, 3)):
        images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        with torch.no_grad():
            expected = reference(images).double()
        noise = torch.from_numpy(engine(images)['logits']) - expected
        assert 5 < signal_to_noise(float(expected.square().sum()), float(noise.square().sum())) < 60


def test_the_noisiest_layers():
    layers = [LayerNoise(name, 1, 1, 0, 1, 10, own) for name, own in zip('abcde', (30., float('inf'), 12., 25., 20.))]
    assert noisiest(layers, 0) == [] and noisiest(layers, 1 / 8) == ['c'] and noisiest(layers, 1 / 4) == ['c', 'e']


@pytest.mark.parametrize('metrics, expected', [
    ([], Attempt(False, [], None, rounded=False)),
    ([40], Attempt(False, [], None, rounded=True)),
    ([40, 41], Attempt(True, [], None, rounded=True)),
    ([43, 40, 41], Attempt(True, ['h'], None, rounded=True)),
    ([43, 41, 40], Attempt(False, ['a'], None, rounded=True)),
    ([43, 40, 40], Attempt(False, ['a'], None, rounded=True)),
    ([43, 40, 41, 41], Attempt(True, ['h', 'g'], None, rounded=True)),
    ([43, 41, 40, 41], Attempt(False, ['a', 'b'], None, rounded=True))])
def test_what_is_tried_next(metrics, expected):
    """The noisiest layer of the plain attempt is d, that of the rounded one a, that of the equalised one h."""
    noise = [(4, 3, 2, 1, 5, 6, 7, 8), range(8), range(8, 0, -1)]
    layers = []
    for of_attempt in noise:
        layers.append([LayerNoise(name, 1, 1, 0, 1, 10, own) for own, name in zip(of_attempt, 'abcdefgh')])
    tried = [Attempt(False, [], metric) for metric in metrics]
    assert next_attempt(tried, [*layers, []][:len(tried)]) == expected


@pytest.fixture
def suffering(run, cfg, checkpoint, tmp_path) -> tuple[Config, Checkpoint]:
    """A config whose validation masks are what the network predicts, and its deploy form with scaled channels."""
    shutil.copytree(run / 'shapes', tmp_path / 'shapes')
    cfg.val_dataloader.dataset.data_root = cfg.train_dataloader.dataset.data_root = str(tmp_path / 'shapes')
    model = build_model(cfg)
    checkpoint.load_into(model, cfg)
    for i, path in enumerate(sorted((tmp_path / 'shapes' / 'labels' / 'val').iterdir())):
        sample, = model.eval().test_step(pseudo_collate([validation_set(cfg)[i]]))
        assert Path(sample.img_path).stem == path.stem
        cv2.imwrite(str(path), sample.pred_sem_seg.data[0].numpy().astype(np.uint8))

    weights = whole_model_convert(model).state_dict()
    scale_channels = runpy.run_path(str(ROOT / 'benchmarks' / 'int8_suffering.py'))['scale_channels']
    assert scale_channels(weights, spread=6) == 4
    torch.save(dict(state_dict=weights), tmp_path / 'deploy.pth')
    return cfg, Checkpoint.read(tmp_path / 'deploy.pth')


@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_equalising_brings_a_suffering_model_back(engine, suffering, tmp_path):
    cfg, checkpoint = suffering
    target = Target(engine, **INT8, max_drop=10)
    exported = export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    found = exported.description.quantisation
    plain, rounded, equalised = found.tried
    assert found.float32 > 99.9 and plain.metric < 70 and rounded.metric < 70
    assert equalised.equalised and equalised.float32 == [] and equalised.metric == found.int8 > 90
    if engine == 'onnx':
        graph = prepare(cfg, checkpoint, Target('onnx', shape=(SIZE, SIZE)), progress=quiet).graph
        assert 0.1 < share_not_nearest(onnx.load(exported.path), equalise(graph)[0]) < 0.9


def share_not_nearest(quantised: onnx.ModelProto, model: onnx.ModelProto) -> float:
    """Of the weights in int8, those that are not the nearest to what they are in `model`."""
    stored, producers = constants_of(quantised), producers_of(quantised)
    differing = []
    for name, conv in convolutions_of(model).items():
        weights, = arrays_of(model, [conv.input[1]]).values()
        step = np.abs(weights).max((1, 2, 3), keepdims=True) / 127
        node = next(node for node in quantised.graph.node if node.name == name)
        dequantised = producers[node.input[1]]
        found = onnx.numpy_helper.to_array(stored[dequantised.input[0]])
        differing.append((found != np.round(weights / step)).ravel())
    return float(np.concatenate(differing).mean())


def test_missing_data_is_said_before_the_work(run, tmp_path):
    result = run_tool('tools/export.py', run / 'config.py', run / 'checkpoint.pth', '--out', tmp_path / 'out',
                      '--engine', 'openvino', '--precision', 'int8', '--cfg-options',
                      f'train_dataloader.dataset.data_root={tmp_path / "absent"}', check=False)
    assert_refused(result, 'images/train and labels/train are missing: put the dataset there')
    assert 'Fusing' not in result.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('engine, package', [('openvino', 'nncf'), ('onnx', 'onnxruntime')])
def test_a_missing_quantiser_names_the_pip_command(engine, package, cfg, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, .*pip install -e '\.\[export\]'"):
        export(cfg, checkpoint, tmp_path / 'out', Target(engine, **INT8), progress=quiet)
    assert list(tmp_path.iterdir()) == []


def as_read(written: Description) -> dict:
    """Tuples are lists in a file."""
    return json.loads(json.dumps(asdict(written)))


def test_what_was_given_is_not_changed(cfg, checkpoint, tmp_path):
    prepared = prepare(cfg, checkpoint, Target('openvino', shape=(SIZE, SIZE)), progress=quiet)
    content = prepared.graph.SerializeToString()
    path, described = write_engine(prepared.graph, prepared.description, tmp_path)
    before = cfg.pretty_text, asdict(described)
    assert as_read(described) == asdict(Engine(path).description)

    found = quantise_engine(cfg, path, prepared.graph, described, calib_images=2, max_drop=100, progress=quiet)
    assert (cfg.pretty_text, asdict(described)) == before and described.quantisation is None
    assert asdict(Engine(path).description) == as_read(found) and found.files != described.files
    assert found.quantisation.calib_images == 2 and 'nncf' in found.versions and 'nncf' not in described.versions
    assert prepared.graph.SerializeToString() == content


def test_attempts_in_words():
    assert describe_attempt(Attempt(False, [], None)) == ''
    assert describe_attempt(Attempt(False, [], None, rounded=True)) == ', weights rounded by GPTQ'
    assert describe_attempt(Attempt(False, ['a'], None)) == ', 1 convolution in float32'
    assert describe_attempt(Attempt(True, ['a', 'b'], None, rounded=True)) == (
        ', channels equalised, weights rounded by GPTQ, 2 convolutions in float32')
