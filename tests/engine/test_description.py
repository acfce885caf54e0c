"""`engine.json`: what is written is read again, and every damage is told in a sentence."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from engines import description

from repvgg_mm import UserError
from repvgg_mm.engine.description import (
    FORMAT,
    Attempt,
    Comparison,
    Description,
    Input,
    Quantisation,
    description_from,
    is_engine,
    read_description,
    write_description,
)

# As the version before formats were counted wrote them, but for the length of some tables.
SEGMENTOR_OF_BEFORE = """{
  "task": "segmentation", "model": "EncoderDecoder",
  "arch": {"depths": [1, 2, 4, 1], "width_factors": [0.125, 0.125, 0.125, 0.125]},
  "classes": ["sky", "road", "tree"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
  "source": "pspnet.pth", "source_sha256": "8efdb343bb339dadd931718dd71725220377615fda2a59b8990cb7e74d0817e1",
  "versions": {"repvgg_mm": "0.1.0", "torch": "2.13.0+cpu", "mmengine": "0.10.7", "onnx": "1.23.2"},
  "engine": "onnx", "precision": "fp32", "outputs": ["labels"],
  "input": {"name": "image", "dtype": "uint8", "layout": "NHWC", "shape": [1, 64, 96, 3]},
  "openvino_properties": {},
  "preprocessing": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "swap_channels": true,
                    "pad_divisor": 1, "pad_value": 0, "inside": true},
  "graph": {"Conv": 15, "Relu": 14, "ArgMax": 1},
  "files": {"engine.onnx": "a3dc67588cd1f3dd09b59a87801123e22bcaafcc8580bd34598afc80d06fc46b"},
  "compared": [{"shape": [1, 64, 96, 3], "errors": {"labels": 0.0}}], "tolerance": 0.0001, "computed_in": "f32"
}"""
DETECTOR_OF_BEFORE = """{
  "task": "detection", "model": "RetinaNet", "arch": "A0", "classes": null, "palette": null,
  "source": "retinanet.pth", "source_sha256": "8bc76a29620ddb568318e5fe4a4ec6c24b252887ab96c98c0fc843842b8288d4",
  "versions": {"repvgg_mm": "0.1.0", "openvino": "2026.4.1"},
  "engine": "openvino", "precision": "int8", "outputs": ["boxes", "scores"],
  "input": {"name": "image", "dtype": "float32", "layout": "NCHW", "shape": [null, 3, null, null]},
  "openvino_properties": {"INFERENCE_PRECISION_HINT": "f32"},
  "preprocessing": {"mean": null, "std": null, "swap_channels": true, "pad_divisor": 32, "pad_value": 0.5,
                    "inside": false},
  "levels": [[8, 8, 9], [16, 16, 9]],
  "test_cfg": {"nms_pre": 1000, "score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
  "nms": "outside", "graph": {"Conv": 37},
  "files": {"engine.xml": "00", "engine.bin": "11"},
  "compared": [{"shape": [1, 3, 64, 96], "errors": {"boxes": 5.4e-07, "scores": 1.1e-06}},
               {"shape": [2, 3, 77, 123], "errors": {"boxes": 6.9e-07, "scores": 9.2e-07}}],
  "tolerance": 0.0001, "computed_in": "f32",
  "quantisation": {"calib_images": 100, "metric": "coco/bbox_mAP", "float32": 41.5, "int8": 41.25, "drop": 0.25,
                   "max_drop": 0.3, "tried": [{"equalised": true, "float32": ["stem"], "metric": 41.25}],
                   "layers": [{"name": "stem", "largest_weight": 1.5, "snr_db": 30.5, "own_snr_db": null}]}
}"""

INT8 = description(
    task='detection',
    classes=['disk', 'ring'],
    palette=[[1, 2, 3], [4, 5, 6]],
    arch=dict(depths=[1, 2, 4, 1]),
    versions=dict(torch='2.5.1'),
    precision='int8',
    openvino_properties=dict(INFERENCE_PRECISION_HINT='f32'),
    graph=dict(Conv=15),
    compared=[Comparison([1, 3, 8, 8], dict(boxes=1e-6, scores=2e-6))],
    tolerance=1e-4,
    computed_in='f32',
    levels=[[8, 8, 9]],
    test_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=5),
    nms='outside',
    quantisation=Quantisation(4, 'coco/bbox_mAP', 40., 39.9, 0.1, 0.3, [Attempt(False, [], 39.9)], [dict(name='a')]))


@pytest.fixture
def path(tmp_path) -> Path:
    """Of an engine in two files, not described yet."""
    (tmp_path / 'engine.xml').write_bytes(b'network')
    (tmp_path / 'engine.bin').write_bytes(b'weights')
    return tmp_path / 'engine.xml'


@pytest.mark.parametrize('written', [description(), INT8], ids=['least', 'int8'])
def test_what_is_written_is_read_again(written, path):
    before = copy.deepcopy(written)
    returned = write_description(path, written)
    assert written == before and written.files == {}
    assert returned == replace(written, files={
        'engine.xml': hashlib.sha256(b'network').hexdigest(), 'engine.bin': hashlib.sha256(b'weights').hexdigest()})
    assert read_description(path) == read_description(str(path)) == returned
    assert write_description(path, returned) == returned  # digests are always those of the files that are there


def test_the_names_in_the_file(path):
    """Programs read them with json alone."""
    write_description(path, description())
    content = json.loads(path.with_suffix('.json').read_text())
    assert set(content) == {
        'task', 'model', 'arch', 'classes', 'palette', 'source', 'source_sha256', 'versions', 'engine', 'precision',
        'outputs', 'input', 'openvino_properties', 'preprocessing', 'graph', 'files', 'compared', 'tolerance',
        'computed_in', 'format'}
    assert content['format'] == FORMAT == 1
    assert content['input'] == dict(name='image', dtype='float32', layout='NCHW', shape=[2, 3, None, 8])
    assert content['preprocessing'] == dict(
        mean=None, std=None, swap_channels=False, pad_divisor=1, pad_value=0, inside=False)

    write_description(path, INT8)
    more = json.loads(path.with_suffix('.json').read_text())
    assert set(more) - set(content) == {'levels', 'test_cfg', 'nms', 'quantisation'}
    assert more['compared'] == [dict(shape=[1, 3, 8, 8], errors=dict(boxes=1e-6, scores=2e-6))]
    assert set(more['quantisation']) == {
        'calib_images', 'metric', 'float32', 'int8', 'drop', 'max_drop', 'tried', 'layers'}
    assert more['quantisation']['tried'] == [dict(equalised=False, float32=[], metric=39.9, rounded=False)]


@pytest.mark.parametrize('text', [SEGMENTOR_OF_BEFORE, DETECTOR_OF_BEFORE], ids=['segmentor', 'detector'])
def test_a_file_from_before_formats_were_counted(text):
    content = json.loads(text)
    found = description_from(content, 'engine.json')
    assert found.format == 1 and found.source_sha256 == content['source_sha256']
    as_written = json.loads(json.dumps(dataclasses.asdict(found)))
    if found.quantisation:
        attempt, = as_written['quantisation']['tried']
        assert attempt.pop('rounded') is False  # there was no rounding yet
    assert {name: as_written[name] for name in content} == content
    assert isinstance(found.input, Input) and all(isinstance(one, Comparison) for one in found.compared)


def test_an_engine_from_before_formats_were_counted(tmp_path):
    content = json.loads(SEGMENTOR_OF_BEFORE)
    graph = b'\x12\x05graph'
    (tmp_path / 'engine.onnx').write_bytes(graph)
    content['files'] = {'engine.onnx': hashlib.sha256(graph).hexdigest()}
    (tmp_path / 'engine.json').write_text(json.dumps(content))
    assert read_description(tmp_path / 'engine.onnx').classes == ['sky', 'road', 'tree']


def test_nobody_changes_a_description_in_place():
    quantisation = INT8.quantisation
    for part, name in (
            (INT8, 'classes'), (INT8.input, 'shape'), (INT8.preprocessing, 'inside'), (INT8.compared[0], 'errors'),
            (quantisation, 'int8'), (quantisation.tried[0], 'metric')):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, None)


@pytest.mark.parametrize('found', [2, 0, '1', None, [1]])
def test_an_unknown_format(found):
    content = dict(json.loads(SEGMENTOR_OF_BEFORE), format=found)
    with pytest.raises(UserError, match=(
            r"has format 1 here, and engine\.json has format .*\. Export again with this version of repvgg_mm, or")):
        description_from(content, 'engine.json')


OPTIONAL = {
    'files', 'compared', 'tolerance', 'computed_in', 'levels', 'test_cfg', 'nms', 'quantisation', 'clipped', 'half',
    'format'}


@pytest.mark.parametrize('name', [field.name for field in dataclasses.fields(Description)])
def test_a_field_that_is_missing(name):
    content = json.loads(DETECTOR_OF_BEFORE)
    content.pop(name, None)
    if name in OPTIONAL:
        assert isinstance(description_from(content, 'engine.json'), Description)
        return
    with pytest.raises(UserError, match=rf"has a field '{name}', and a/engine\.json has none\. .* or export again"):
        description_from(content, 'a/engine.json')


@pytest.mark.parametrize('place', [
    ('input', 'shape'), ('preprocessing', 'pad_value'), ('compared', 1, 'errors'), ('quantisation', 'max_drop'),
    ('quantisation', 'tried', 0, 'metric')])
def test_a_field_of_a_part_that_is_missing(place):
    content = json.loads(DETECTOR_OF_BEFORE)
    part = content
    for step in place[:-1]:
        part = part[step]
    del part[place[-1]]
    name = ''.join(f'[{step}]' if isinstance(step, int) else f'.{step}' for step in place)[1:]
    with pytest.raises(UserError) as caught:
        description_from(content, 'engine.json')
    assert f'has a field {name!r}, and engine.json has none.' in str(caught.value)


@pytest.mark.parametrize('name, value, wanted', [
    ('task', 3, 'str'), ('classes', 'disk', 'list'), ('classes', ['disk', 3], 'str'), ('versions', [], 'dict'),
    ('outputs', None, 'list'), ('input', [1, 2], 'Input'), ('preprocessing', None, 'InputPreprocessing'),
    ('compared', {}, 'list'), ('compared', [3], 'Comparison'), ('tolerance', 'small', 'float'),
    ('tolerance', True, 'float'),
    ('quantisation', 5, 'Quantisation'), ('levels', 8, 'list'), ('test_cfg', [], 'dict'), ('files', 'engine', 'dict')])
def test_a_field_of_another_type(name, value, wanted):
    content = dict(json.loads(DETECTOR_OF_BEFORE), **{name: value})
    with pytest.raises(UserError, match=(
            rf"The field '{name}.*' of the description of an engine is a {wanted}, and in engine\.json it is .*\. "
            'Copy all files of the export, or export again')):
        description_from(content, 'engine.json')


def test_a_size_that_is_no_number():
    content = json.loads(DETECTOR_OF_BEFORE)
    content['input']['shape'][1] = '3'
    with pytest.raises(UserError, match=r"The field 'input\.shape\[1\]' .* is a int, and in engine\.json it is '3'"):
        description_from(content, 'engine.json')


@pytest.mark.parametrize('content', [[], 'text', None, 3])
def test_a_file_that_is_no_object(content):
    with pytest.raises(UserError, match=r'is a JSON object, and engine\.json holds a \w+\. Copy all files'):
        description_from(content, 'engine.json')


def test_a_description_that_is_a_pipe(path):
    """Reading it would wait for ever."""
    os.mkfifo(path.with_suffix('.json'))
    with pytest.raises(UserError, match=r'has not \(OSError: not a regular file\)'):
        read_description(path)


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe{}'])
def test_a_file_that_is_no_json(content, path):
    path.with_suffix('.json').write_bytes(content)
    with pytest.raises(UserError, match=r'has its description, engine\.json, and .* has not \(.*Copy all files'):
        read_description(path)


def test_files_that_are_not_those_that_were_described(path):
    write_description(path, description())
    path.with_suffix('.bin').write_bytes(b'weights of another export')
    with pytest.raises(UserError, match=r'belong to one export, and engine\.bin is not the file that .*engine\.json'):
        read_description(path)
    path.with_suffix('.bin').unlink()
    with pytest.raises(UserError, match=r'its other files beside it, .* has not \(FileNotFoundError.*Copy all files'):
        read_description(path)


def test_an_engine_that_its_description_does_not_list(path, tmp_path):
    write_description(path, description())
    content = json.loads(path.with_suffix('.json').read_text())
    content['files'] = {}
    path.with_suffix('.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'belong to one export, and engine\.xml, engine\.bin is not the file that'):
        read_description(path)


def changed(path: Path, **parts: object) -> None:
    """The description beside `path`, with other parts."""
    content = json.loads(path.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps(content | parts))


@pytest.mark.parametrize('properties', [
    dict(CACHE_DIR='/tmp/cache'), dict(INFERENCE_PRECISION_HINT='f32', CACHE_DIR='x'),
    dict(INFERENCE_PRECISION_HINT=['f32']), dict(INFERENCE_PRECISION_HINT='dynamic'), dict(CONFIG_FILE='a.xml')])
def test_properties_that_no_export_writes(properties, path):
    write_description(path, description())
    changed(path, openvino_properties=properties)
    with pytest.raises(UserError, match=r"is loaded with the properties .*has \w+=.*where it comes from"):
        read_description(path)


@pytest.mark.parametrize('name', ['../other.bin', '/etc/hostname', 'folder', 'a/b', 'C:\\a', 'pipe', '.', ''])
def test_files_of_an_engine_are_regular_ones_beside_it(name, path):
    (path.parent / 'folder').mkdir()
    os.mkfifo(path.parent / 'pipe')  # reading it would wait for ever
    written = write_description(path, description())
    changed(path, files=written.files | {name: '00'})
    with pytest.raises(UserError, match=r'are regular files in its folder, and .*engine\.json names'):
        read_description(path)


def test_weights_of_an_openvino_engine_are_described(path):
    written = write_description(path, description())
    changed(path, files={'engine.xml': written.files['engine.xml']})
    with pytest.raises(UserError, match=r'belong to one export, and engine\.bin is not the file that'):
        read_description(path)


def test_weights_of_an_onnx_engine_that_are_apart(tmp_path):
    onnx = pytest.importorskip('onnx')
    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), 'w')
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('MatMul', ['x', 'w'], ['y'])], 'g',
        [onnx.helper.make_tensor_value_info('x', 1, [1, 64])],
        [onnx.helper.make_tensor_value_info('y', 1, [1, 64])], [weights])
    path = tmp_path / 'engine.onnx'
    onnx.save(onnx.helper.make_model(graph), path, save_as_external_data=True, location='w.data', size_threshold=0)

    written = write_description(path, description())
    assert set(written.files) == {'engine.onnx', 'w.data'} and read_description(path) == written
    changed(path, files={'engine.onnx': written.files['engine.onnx']})
    with pytest.raises(UserError, match=r'belong to one export, and w\.data is not the file that'):
        read_description(path)


def test_a_file_that_is_no_graph(tmp_path):
    path = tmp_path / 'engine.onnx'
    path.write_bytes(b'\x12\x05graph')
    written = write_description(path, description())
    assert set(written.files) == {'engine.onnx'} and read_description(path) == written
    path.write_bytes(b'\x12\x06graph')
    changed(path, files={'engine.onnx': hashlib.sha256(b'\x12\x06graph').hexdigest()})
    with pytest.raises(UserError, match=r"graph in ONNX's format, and .*engine\.onnx is not \(a field of 6 bytes"):
        read_description(path)


@pytest.mark.parametrize('place, value', [
    ('input.shape', [1, 3, 0, 8]), ('input.shape', [1, 3, 1 << 17, 8]), ('input.shape', [3, 8, 8]),
    ('input.dtype', 'object'), ('input.layout', 'CHWN'), ('outputs', []), ('preprocessing.std', [1, 0, 1]),
    ('preprocessing.mean', [float('nan')]), ('preprocessing.pad_value', float('inf')),
    ('preprocessing.pad_divisor', 0), ('levels', [[0, 8, 1]]), ('levels', [[8, 8]]), ('levels', [8]),
    ('levels', [[8, 8, 1.5]])])
def test_values_with_which_nothing_can_be_computed(place, value, path):
    write_description(path, INT8)
    content = json.loads(path.with_suffix('.json').read_text())
    part, (*steps, last) = content, place.split('.')
    for step in steps:
        part = part[step]
    part[last] = value
    path.with_suffix('.json').write_text(json.dumps(content))
    named = place if place.endswith('pad_divisor') or 'preprocessing' not in place else 'preprocessing'
    with pytest.raises(UserError, match=rf"The field '{named}' .* has values that an export writes, and in .* it is"):
        read_description(path)


def test_a_description_of_many_lists(path):
    path.with_suffix('.json').write_text('[' * 100_000)
    with pytest.raises(UserError, match=r'has not \(RecursionError.*Copy all files'):
        read_description(path)


def test_names_of_engines():
    assert is_engine('a/engine.onnx') and is_engine(Path('engine.xml')) and is_engine('engine.plan')
    assert not any(is_engine(name) for name in ('engine.json', 'engine.bin', 'best.pth', 'onnx', ''))


def test_the_input_in_words():
    assert str(Input('image', 'uint8', 'NHWC', [None, 64, 96, 3])) == 'uint8 images of (any, 64, 96, 3) (NHWC)'
