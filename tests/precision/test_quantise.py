"""Engines in int8: when the metric is kept, what stays in float32, and when they are refused."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from engines import quiet, two_networks
from helpers import retinanet
from tool_runs import assert_refused, run_tool

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.engine.description import Description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import export, load_deploy, prepare
from repvgg_mm.export.networks import Preprocess, network_of
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.preprocessing import Preprocessing
from repvgg_mm.precision.layer_noise import LayerNoise, convolutions_of, signal_to_noise
from repvgg_mm.precision.metric import validation_config
from repvgg_mm.precision.quantise import (
    after_last_convolutions,
    describe_attempt,
    noisiest,
    quantise,
    quantise_engine,
)

pytestmark = pytest.mark.stack
SIZE = 48
INT8 = dict(engine='openvino', precision='int8', shape=(SIZE, SIZE), calib_images=4)


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
    assert found['tried'] == [dict(equalised=False, float32=[], metric=found['int8'])]
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
    network = openvino.Core().read_model(exported / 'engine.xml')
    types = {node.get_element_type().get_type_name() for node in network.get_ordered_ops()
             if node.get_type_name() == 'Constant' and node.get_output_size() and len(node.get_output_shape(0)) == 4
             and np.prod(node.get_output_shape(0)) > 1000}
    assert types == {'i8'}


def test_past_max_drop_nothing_is_written(cfg, checkpoint, tmp_path):
    with pytest.raises(UserError, match=(
            r'may lose -100 points of mIoU \(--max-drop\), and this one reached [\d.]+; [\d.]+, channels equalised; '
            r'[\d.]+, 2 convolutions in float32; [\d.]+, 4 .* float32; instead of [\d.]+\. Nothing was written: try ')):
        export(cfg, checkpoint, tmp_path / 'out', Target(**INT8, max_drop=-100), progress=quiet)
    assert list(tmp_path.iterdir()) == []


def test_any_size_and_images_as_they_are_read(cfg, checkpoint, tmp_path):
    target = Target(**INT8, max_drop=100, dynamic=True, preprocess=True)
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


def test_a_layer_kept_in_float32_is_not_quantised():
    network = two_networks()[0]
    images = [torch.randn(1, 3, 12, 14, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    model = openvino.Core().read_model(to_onnx(network, images[0], ['out']).SerializeToString())
    arrays = [image.numpy() for image in images]
    names = list(convolutions_of(model))
    for kept in ([], [names[1]]):
        made = convolutions_of(quantise(model, arrays, kept))
        quantised = {name: any(made[name].input_value(i).get_node().get_type_name() != 'Constant' and
                               'FakeQuantize' in _above(made[name].input_value(i)) for i in (0, 1)) for name in names}
        assert quantised == {name: name not in kept for name in names}


def _above(value, depth: int = 2) -> set[str]:
    """Types of the nodes that make a value, some steps up."""
    node = value.get_node()
    inputs = node.input_values() if depth else []
    return {node.get_type_name()}.union(*(_above(source, depth - 1) for source in inputs))


def test_boxes_are_decoded_in_float32():
    network = network_of(whole_model_convert(retinanet()))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    names = list(network.outputs[:2])
    model = openvino.Core().read_model(to_onnx(network, image, names).SerializeToString())
    after = set(after_last_convolutions(model))
    types = {node.get_type_name() for node in model.get_ordered_ops() if node.get_friendly_name() in after}
    assert {'Sigmoid', 'Exp', 'Concat'} <= types and not types & {'Convolution', 'Relu'}
    quantised = quantise(model, [image.numpy()])
    before_convolution = set()
    for node in reversed(quantised.get_ordered_ops()):
        readers = [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
        if any(one.get_type_name() == 'Convolution' or one.get_name() in before_convolution for one in readers):
            before_convolution.add(node.get_name())
    quantisers = [node for node in quantised.get_ordered_ops() if node.get_type_name() == 'FakeQuantize']
    assert len(quantisers) > 20 and all(node.get_name() in before_convolution for node in quantisers)


def test_the_noisiest_layers():
    layers = [LayerNoise(name, 1, 1, 0, 1, 10, own) for name, own in zip('abcde', (30., float('inf'), 12., 25., 20.))]
    assert noisiest(layers, 0) == [] and noisiest(layers, 1 / 8) == ['c'] and noisiest(layers, 1 / 4) == ['c', 'e']


def test_missing_data_is_said_before_the_work(run, tmp_path):
    result = run_tool('tools/export.py', run / 'config.py', run / 'checkpoint.pth', '--out', tmp_path / 'out',
                      '--engine', 'openvino', '--precision', 'int8', '--cfg-options',
                      f'train_dataloader.dataset.data_root={tmp_path / "absent"}', check=False)
    assert_refused(result, 'images/train and labels/train are missing: put the dataset there')
    assert 'Fusing' not in result.stdout and list(tmp_path.iterdir()) == []


def test_missing_nncf_names_the_pip_command(cfg, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(UserError, match=r"needs nncf, .*pip install -e '\.\[export\]'"):
        export(cfg, checkpoint, tmp_path / 'out', Target(**INT8), progress=quiet)
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

    found = quantise_engine(cfg, path, content, described, calib_images=2, max_drop=100, progress=quiet)
    assert (cfg.pretty_text, asdict(described)) == before and described.quantisation is None
    assert asdict(Engine(path).description) == as_read(found) and found.files != described.files
    assert found.quantisation.calib_images == 2 and 'nncf' in found.versions and 'nncf' not in described.versions
    assert prepared.graph.SerializeToString() == content


def test_a_network_is_not_changed_by_quantising_it():
    network, image = two_networks()[0], torch.randn(1, 3, 12, 14)
    model = openvino.Core().read_model(to_onnx(network, image, ['out']).SerializeToString())
    types = [node.get_type_name() for node in model.get_ordered_ops()]
    quantise(model, [image.numpy()])
    assert [node.get_type_name() for node in model.get_ordered_ops()] == types


def test_attempts_in_words():
    assert describe_attempt(False, []) == ''
    assert describe_attempt(True, []) == ', channels equalised'
    assert describe_attempt(True, ['a', 'b']) == ', channels equalised, 2 convolutions in float32'
