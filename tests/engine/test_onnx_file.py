"""Names of a graph's other files, as onnx itself writes them, wherever a tensor can stand."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_mm.engine.onnx_file import external_files

onnx = pytest.importorskip('onnx')


def tensor(location: str) -> object:
    made = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), 'weights')
    onnx.external_data_helper.set_external_data(made, location, offset=3, length=16)
    made.ClearField('raw_data')
    made.data_location = onnx.TensorProto.EXTERNAL
    return made


def graph(*nodes: object, initializer: tuple = (), sparse: tuple = ()) -> object:
    return onnx.helper.make_graph(nodes, 'graph', [], [], initializer, sparse_initializer=sparse)


def node(**attributes: object) -> object:
    return onnx.helper.make_node('Any', [], ['y'], **attributes)


def sparse_tensor(location: str) -> object:
    return onnx.SparseTensorProto(values=tensor(location), indices=tensor(f'{location} of indices'), dims=[2, 2])


GRAPHS = {
    'nothing': (graph(node(value=onnx.numpy_helper.from_array(np.ones(3)))), set()),
    'initializer': (graph(initializer=[tensor('a.data')]), {'a.data'}),
    'attribute': (graph(node(value=tensor('b'))), {'b'}),
    'attributes': (graph(node(value=[tensor('b'), tensor('c')])), {'b', 'c'}),
    'inner graph': (graph(node(body=graph(node(body=graph(initializer=[tensor('d')]))))), {'d'}),
    'inner graphs': (graph(node(body=[graph(node(value=tensor('e')))])), {'e'}),
    'sparse': (graph(sparse=[sparse_tensor('f')]), {'f', 'f of indices'}),
    'sparse attribute': (graph(node(value=sparse_tensor('g'), more=[sparse_tensor('h')])),
                         {'g', 'g of indices', 'h', 'h of indices'}),
    'long name': (graph(initializer=[tensor('n' * 300)]), {'n' * 300}),
}


@pytest.mark.parametrize('name', GRAPHS)
def test_every_place_of_a_tensor(name):
    written, expected = GRAPHS[name]
    assert external_files(onnx.helper.make_model(written).SerializeToString()) == expected


def test_functions_and_training():
    model = onnx.helper.make_model(graph())
    model.functions.append(onnx.helper.make_function(
        'own', 'f', [], ['y'], [node(value=tensor('a'))], [onnx.helper.make_opsetid('', 17)]))
    training = model.training_info.add()
    training.algorithm.CopyFrom(graph(initializer=[tensor('b')]))
    training.initialization.CopyFrom(graph(initializer=[tensor('c')]))
    assert external_files(model.SerializeToString()) == {'a', 'b', 'c'}


def test_the_order_of_key_and_value():
    content = onnx.helper.make_model(graph(initializer=[tensor('a.data')])).SerializeToString()
    in_order, turned = b'\n\x08location\x12\x06a.data', b'\x12\x06a.data\n\x08location'
    assert content.count(in_order) == 1
    changed = content.replace(in_order, turned)
    assert onnx.load_from_string(changed).graph.initializer[0].external_data[0].value == 'a.data'
    assert external_files(changed) == {'a.data'}


@pytest.mark.parametrize('content, message', [
    (b'\x3a\xff', 'a number without an end'), (b'\xff' * 12, 'a number without an end'),
    (b'\x3a\x05abc', 'a field of 5 bytes beyond its end'), (b'\x39abc', 'a field of 8 bytes beyond its end'),
    (b'\x3b\x3c', 'a field of type 3')])
def test_what_is_no_message(content, message):
    with pytest.raises(ValueError, match=message):
        external_files(content)
