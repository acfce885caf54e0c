"""Engines in int8: what they are calibrated on, what is measured of each layer, and when they are refused."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import openvino
import pytest
import torch
from helpers import TINY, randomise_norms, retinanet
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from tool_runs import assert_refused, derived_config, run_tool
from torch import nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.export.calibration import calibration_images
from repvgg_mm.export.export import Target, export, load_deploy, prepare, write_engine
from repvgg_mm.export.layer_noise import Layer, convolutions_of, layer_table, measure_layers, signal_to_noise
from repvgg_mm.export.networks import Preprocess, network_of
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.export.quantise import after_last_convolutions, headline, noisiest, quantise, validation_config
from repvgg_mm.openmmlab.data import training_set
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.openmmlab.preprocessing import Preprocessing

pytestmark = pytest.mark.stack
SIZE = 48
INT8 = dict(engine='openvino', precision='int8', shape=(SIZE, SIZE), calib_images=4)


def quiet(step: str) -> None:
    """No progress."""


def config_text(data: Path) -> str:
    loaders = '\n'.join(f"{split}_dataloader = dict(num_workers=0, persistent_workers=False, "
                        f"dataset=dict(data_root='{data}'))" for split in ('train', 'val', 'test'))
    return f"""
model = dict(
    data_preprocessor=dict(size=({SIZE}, {SIZE})),
    backbone=dict(arch=dict(_delete_=True, **{TINY})),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
{loaders}
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """A folder with generated data, a config and a checkpoint of a random network."""
    folder = tmp_path_factory.mktemp('quantise')
    make_shapes(folder / 'shapes', num_train=9, num_val=3, size=SIZE)
    path = derived_config(folder / 'config.py', config_text(folder / 'shapes'))
    torch.manual_seed(0)
    model = randomise_norms(build_model(Config.fromfile(path)))
    torch.save(dict(state_dict=model.state_dict()), folder / 'checkpoint.pth')
    return folder


@pytest.fixture
def cfg(run) -> Config:
    return Config.fromfile(run / 'config.py')


@pytest.fixture(scope='module')
def exported(run) -> Path:
    """As the tool writes it; a random network may lose any number of points."""
    result = run_tool('tools/export.py', run / 'config.py', run / 'checkpoint.pth', '--out', run / 'engine', '--engine',
                      'openvino', '--precision', 'int8', '--calib-images', 4, '--max-drop', 100)
    (run / 'stdout').write_text(result.stdout)
    return run / 'engine'


def test_what_the_tool_writes_and_says(exported, cfg):
    assert sorted(path.name for path in exported.iterdir()) == ['engine.bin', 'engine.json', 'engine.xml']
    meta = json.loads((exported / 'engine.json').read_text(), parse_constant=pytest.fail)
    found = meta['quantisation']
    assert meta['precision'] == 'int8' and meta['tolerance'] == 1e-4
    assert meta['openvino_properties'] == {'INFERENCE_PRECISION_HINT': 'f32'}
    assert found['calib_images'] == 4 and found['metric'] == 'mIoU' and len(found['layers']) == 15
    assert found['tried'] == [dict(equalised=False, float32=[], metric=found['int8'])]
    quiet_cfg = validation_config(cfg)
    assert evaluate(quiet_cfg, exported / 'engine.xml')['mIoU'] == found['int8']
    assert evaluate(quiet_cfg, exported.parent / 'checkpoint.pth')['mIoU'] == pytest.approx(found['float32'], abs=0.02)
    said = (exported.parent / 'stdout').read_text()
    for part in ('4/4', 'Quantising on 4 images', 'SNR, dB', 'backbone.stage_3.2.branch_reparam',
                 f'{found["float32"]:.2f} in float32, {found["int8"]:.2f} in int8.'):
        assert part in said
    assert b'.py' not in (exported / 'engine.xml').read_bytes()


def test_weights_are_whole_numbers_in_the_file(exported, run, cfg):
    network = openvino.Core().read_model(exported / 'engine.xml')
    types = {node.get_element_type().get_type_name() for node in network.get_ordered_ops()
             if node.get_type_name() == 'Constant' and node.get_output_size() and len(node.get_output_shape(0)) == 4
             and np.prod(node.get_output_shape(0)) > 1000}
    assert types == {'i8'}


def test_past_max_drop_nothing_is_written(run, cfg, tmp_path):
    with pytest.raises(UserError, match=(
            r'may lose -100 points of mIoU \(--max-drop\), and this one reached [\d.]+; [\d.]+, channels equalised; '
            r'[\d.]+, 2 convolutions in float32; [\d.]+, 4 .* float32; instead of [\d.]+\. Nothing was written: try ')):
        export(cfg, run / 'checkpoint.pth', tmp_path / 'out', Target(**INT8, max_drop=-100), progress=quiet)
    assert list(tmp_path.iterdir()) == []


def test_any_size_and_images_as_they_are_read(run, cfg, tmp_path):
    target = Target(**INT8, max_drop=100, dynamic=True, preprocess=True)
    exported = export(cfg, run / 'checkpoint.pth', tmp_path / 'out', target, progress=quiet)
    engine = Engine(exported.path)
    model, _ = load_deploy(cfg, run / 'checkpoint.pth', target)
    reference = network_of(model, Preprocess(Preprocessing.of_config(cfg)))
    for shape in ((1, SIZE, SIZE, 3), (2, 61, 75, 3)):
        images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        with torch.no_grad():
            expected = reference(images).double()
        noise = torch.from_numpy(engine(images)['logits']) - expected
        assert 5 < signal_to_noise(float(expected.square().sum()), float(noise.square().sum())) < 60


@pytest.mark.parametrize('preprocess', [False, True])
def test_calibration_images_are_those_of_a_test(preprocess, run, cfg, tmp_path):
    target = Target('openvino', shape=(SIZE, SIZE), preprocess=preprocess)
    prepared = prepare(cfg, run / 'checkpoint.pth', target, progress=quiet)
    engine = Engine(write_engine(prepared, tmp_path, target))
    found = calibration_images(cfg, engine, 3)
    files = sorted((run / 'shapes' / 'images' / 'train').iterdir())
    for image, file in zip(found, (files[0], files[3], files[6]), strict=True):
        expected = cv2.imread(str(file))[None]
        if not preprocess:
            mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
            expected = ((expected[..., ::-1] - mean) / std).transpose(0, 3, 1, 2)
        assert image.dtype == expected.dtype
        np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-5)
    assert len(calibration_images(cfg, engine, 50)) == 9


def test_one_window_of_each_image(run, cfg, tmp_path):
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    target = Target('openvino', shape=(32, 32))
    engine = Engine(write_engine(prepare(cfg, run / 'checkpoint.pth', target, progress=quiet), tmp_path, target))
    found = calibration_images(cfg, engine, 2)
    model = build_model(cfg)
    whole = [model.data_preprocessor(pseudo_collate([training_set(cfg)[i]]), False)['inputs'].numpy() for i in (0, 4)]
    np.testing.assert_array_equal(found[0], whole[0][:, :, :32, :32])
    np.testing.assert_array_equal(found[1], whole[1][:, :, :32, 16:48])


def two_networks() -> list[nn.Sequential]:
    """The second one is the first with other weights, as if rounded."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    second = copy.deepcopy(first)
    for parameter in second.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return [first.eval(), second.eval()]


def test_layers_against_pytorch_in_float64():
    networks = two_networks()
    images = [torch.randn(1, 3, 12, 14, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    models = [openvino.Core().read_model(to_onnx(network, images[0], ['out']).SerializeToString())
              for network in networks]
    layers = measure_layers(*models, [image.numpy() for image in images])
    values = []
    with torch.no_grad():
        for network in (network.double() for network in networks):
            values.append([[network[:i](image.double()) for image in images] for i in range(6)])
    for layer, i in zip(layers, (0, 2, 4), strict=True):
        ratios = []
        for place in (i, i + 1):
            expected, found = (torch.cat(of[place]) for of in values)
            ratios.append(float((found - expected).square().sum() / expected.square().sum()))
        output = torch.cat(values[0][i + 1])
        magnitudes = networks[0][i].weight.abs().flatten(1).amax(1)
        median = np.median(magnitudes.detach().numpy())
        assert layer.snr_db == pytest.approx(-10 * np.log10(ratios[1]), abs=1e-3)
        own = ratios[1] - ratios[0]
        assert layer.own_snr_db == pytest.approx(-10 * np.log10(own) if own > 0 else np.inf, abs=1e-2)
        assert (layer.low, layer.high) == pytest.approx((output.min().item(), output.max().item()), rel=1e-5)
        assert layer.largest_weight == pytest.approx(magnitudes.max().item(), rel=1e-6)
        assert layer.weight_spread == pytest.approx(magnitudes.max().item() / median, rel=1e-6)
    assert len(layer_table(layers).splitlines()) == 4
    assert layer_table(layers, {layer.name: layer for layer in layers}).splitlines()[0].endswith('before')


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
    layers = [Layer(name, 1, 1, 0, 1, 10, own) for name, own in zip('abcde', (30., float('inf'), 12., 25., 20.))]
    assert noisiest(layers, 0) == [] and noisiest(layers, 1 / 8) == ['c'] and noisiest(layers, 1 / 4) == ['c', 'e']
    assert signal_to_noise(100, 1) == 20 and signal_to_noise(1, 0) == float('inf')


@pytest.mark.parametrize('metrics, expected', [
    (dict(aAcc=80., mIoU=41.74), ('mIoU', 41.74)),
    ({'coco/bbox_mAP_50': .8, 'coco/bbox_mAP': .5}, ('coco/bbox_mAP', 50)),
    ({'pascal_voc/mAP': .25, 'pascal_voc/AP50': .25}, ('pascal_voc/mAP', 25))])
def test_the_metric_that_counts(metrics, expected):
    assert headline(metrics) == expected


def test_no_metric_that_counts():
    with pytest.raises(UserError, match=r'judged by mIoU or mAP, and the val_evaluator .* gives recall\. Add an IoUM'):
        headline(dict(recall=1.))


@pytest.mark.parametrize('values, message', [
    (dict(engine='onnx'), 'quantised by NNCF for OpenVINO, .* Use --engine openvino'),
    (dict(calib_images=0), r'--calib-images 0 leaves none\. Choose 1 or more'),
    (dict(max_drop=float('nan')), 'number of points, such as 0.3, got nan')])
def test_targets_that_do_not_exist(values, message):
    with pytest.raises(UserError, match=message):
        Target(**{**INT8, **values})


def test_missing_data_is_said_before_the_work(run, tmp_path):
    result = run_tool('tools/export.py', run / 'config.py', run / 'checkpoint.pth', '--out', tmp_path / 'out',
                      '--engine', 'openvino', '--precision', 'int8', '--cfg-options',
                      f'train_dataloader.dataset.data_root={tmp_path / "absent"}', check=False)
    assert_refused(result, 'images/train and labels/train are missing: put the dataset there')
    assert 'Fusing' not in result.stdout and list(tmp_path.iterdir()) == []


def test_a_damaged_training_image(run, cfg, tmp_path):
    shutil.copytree(run / 'shapes', tmp_path / 'shapes')
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'shapes')
    sorted((tmp_path / 'shapes/images/train').iterdir())[2].write_bytes(b'')
    with pytest.raises(UserError, match=r'images of the training set, and number 2 cannot be read \(.*Check its files'):
        export(cfg, run / 'checkpoint.pth', tmp_path / 'out', Target(**INT8), progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']


def test_a_config_without_training_data(cfg):
    cfg.pop('train_dataloader')
    with pytest.raises(UserError, match=r'images of the train_dataloader .* lacks the first\. Add it'):
        training_set(cfg)


def test_missing_nncf_names_the_pip_command(run, cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(UserError, match=r"needs nncf, .*pip install -e '\.\[export\]'"):
        export(cfg, run / 'checkpoint.pth', tmp_path / 'out', Target(**INT8), progress=quiet)
    assert list(tmp_path.iterdir()) == []
