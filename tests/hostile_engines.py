"""Engines that an attacker changes: each function of `ATTACKS` takes the folder of a whole one and changes its files.

What is changed is described anew, with the right sha256, unless that is the attack.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

ATTACKS: dict[str, tuple[str, Callable[[Path], None]]] = {}


def attack(engine: str) -> Callable:
    """Adds a function to `ATTACKS`, named by its docstring, for an engine of `onnx` or `openvino`."""
    def add(function: Callable) -> Callable:
        ATTACKS[function.__doc__] = engine, function
        return function
    return add


def describe(folder: Path, **changes: object) -> None:
    """Write the description again, with other parts and the sha256 that the files have now."""
    path = folder / 'engine.json'
    content = json.loads(path.read_text())
    for name in content['files']:
        if (folder / name).is_file():
            content['files'][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for place, value in changes.items():
        part, (*steps, last) = content, place.split('__')
        for step in steps:
            part = part[step]
        part[last] = value
    path.write_text(json.dumps(content))


def rewrite(folder: Path, change: Callable[[object], None]) -> None:
    """Change the graph in engine.onnx."""
    import onnx
    model = onnx.load(folder / 'engine.onnx')
    change(model)
    (folder / 'engine.onnx').write_bytes(model.SerializeToString())
    describe(folder)


def external(folder: Path, location: str, in_order: bool = True) -> None:
    """Let the first weights be in the file `location`."""
    def change(model: object) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField('raw_data')
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = 'location', location

    rewrite(folder, change)
    if not in_order:
        path, value = folder / 'engine.onnx', location.encode()
        ordered = b'\n\x08location\x12' + bytes([len(value)]) + value
        turned = b'\x12' + bytes([len(value)]) + value + b'\n\x08location'
        content = path.read_bytes()
        assert content.count(ordered) == 1
        path.write_bytes(content.replace(ordered, turned))
        describe(folder)


def first_node(folder: Path, **changes: object) -> None:
    def change(model: object) -> None:
        for name, value in changes.items():
            setattr(model.graph.node[0], name, value)
    rewrite(folder, change)


def edit_xml(folder: Path, old: str, new: str) -> None:
    path = folder / 'engine.xml'
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))
    describe(folder)


# Parts of the description of an ONNX engine, and what an attacker writes there.
DESCRIPTIONS = {
    'other names of outputs': dict(outputs=['secrets']),
    'other name of the input': dict(input__name='secrets'),
    'sizes of 10^9 pixels': dict(input__shape=[1, 3, 10**9, 10**9]),
    'sizes below zero': dict(input__shape=[1, 3, -96, -96]),
    'padding to a multiple of nothing': dict(preprocessing__pad_divisor=0),
    'padding to a multiple of 10^12': dict(preprocessing__pad_divisor=10**12),
    'division by a deviation of zero': dict(preprocessing__std=[0, 0, 0]),
    'mean that is no number': dict(preprocessing__mean=[float('nan')] * 3),
    'numbers of pointers': dict(input__dtype='object'),
    'classes that clear the screen': dict(classes=['\x1b[2J\x1b]0;owned\x07'] * 3),
    'a million classes': dict(classes=['a'] * 1_000_000),
    'description of another task': dict(task='detection', levels=[[0, 0, 0]], test_cfg={}),
}

# Text in engine.xml, and what an attacker writes in its place.
EDITS = {
    'weights at 2^62 of their file': ('offset="0"', f'offset="{2**62}"'),
    'entity that names a file': ('<net ', '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net note="&a;" '),
    'layer of another library': ('type="Convolution"', 'type="Evil"'),
    'edge from a layer that there is not': ('from-layer="0"', 'from-layer="999999"'),
    'layer with the number of another': ('layer id="1"', 'layer id="0"'),
    'strides of zero': ('strides="', 'strides="0,0" was="'),
    'input of 10^9 pixels in the graph': ('shape="', 'shape="1,3,1000000000,1000000000" was="'),
}


def described(changes: dict, folder: Path) -> None:
    describe(folder, **changes)


def edited(change: tuple[str, str], folder: Path) -> None:
    edit_xml(folder, *change)


for name, changes in DESCRIPTIONS.items():
    ATTACKS[name] = 'onnx', functools.partial(described, changes)
for name, change in EDITS.items():
    ATTACKS[name] = 'openvino', functools.partial(edited, change)


@attack('onnx')
def _(folder: Path) -> None:
    """weights at /etc/passwd"""
    external(folder, '/etc/passwd')


@attack('onnx')
def _(folder: Path) -> None:
    """weights above the folder"""
    (folder.parent / 'secret').write_bytes(bytes(1 << 20))
    external(folder, '../secret')


@attack('onnx')
def _(folder: Path) -> None:
    """weights beside, not described"""
    (folder / 'weights').write_bytes(bytes(1 << 20))
    external(folder, 'weights')


@attack('onnx')
def _(folder: Path) -> None:
    """weights beside, not described, name before key"""
    (folder / 'weights').write_bytes(bytes(1 << 20))
    external(folder, 'weights', in_order=False)


@attack('onnx')
def _(folder: Path) -> None:
    """weights in a link out of the folder"""
    (folder / 'weights').symlink_to('/etc/passwd')
    external(folder, 'weights')


@attack('onnx')
def _(folder: Path) -> None:
    """weights in a pipe"""
    os.mkfifo(folder / 'weights')
    external(folder, 'weights')


@attack('onnx')
def _(folder: Path) -> None:
    """weights in memory of another process"""
    external(folder, '/proc/1/mem')


@attack('onnx')
def _(folder: Path) -> None:
    """operator of another library"""
    first_node(folder, domain='evil', op_type='Run')


@attack('onnx')
def _(folder: Path) -> None:
    """operator that there is not"""
    first_node(folder, op_type='System')


@attack('onnx')
def _(folder: Path) -> None:
    """10^13 numbers from one"""
    import onnx

    def change(model: object) -> None:
        shape = onnx.numpy_helper.from_array(np.array([10**13]), 'many')
        model.graph.initializer.append(shape)
        model.graph.node.append(onnx.helper.make_node('ConstantOfShape', ['many'], ['numbers']))
        model.graph.output.append(onnx.helper.make_tensor_value_info('numbers', 1, [10**13]))
    rewrite(folder, change)


@attack('onnx')
def _(folder: Path) -> None:
    """weights with sizes of 10^12"""
    rewrite(folder, lambda model: model.graph.initializer[0].dims.__setitem__(0, 10**12))


@attack('onnx')
def _(folder: Path) -> None:
    """weights with negative sizes"""
    rewrite(folder, lambda model: model.graph.initializer[0].dims.__setitem__(0, -1))


@attack('onnx')
def _(folder: Path) -> None:
    """node that feeds itself"""
    rewrite(folder, lambda model: model.graph.node[0].input.__setitem__(0, model.graph.node[0].output[0]))


@attack('onnx')
def _(folder: Path) -> None:
    """opset of the year 3000"""
    rewrite(folder, lambda model: setattr(model.opset_import[0], 'version', 10**9))


@attack('onnx')
def _(folder: Path) -> None:
    """graph cut in half"""
    path = folder / 'engine.onnx'
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    describe(folder)


@attack('onnx')
def _(folder: Path) -> None:
    """graph of zeros"""
    (folder / 'engine.onnx').write_bytes(bytes(1 << 20))
    describe(folder)


@attack('onnx')
def _(folder: Path) -> None:
    """empty graph"""
    (folder / 'engine.onnx').write_bytes(b'')
    describe(folder)


@attack('onnx')
def _(folder: Path) -> None:
    """field of 2^60 bytes"""
    path = folder / 'engine.onnx'
    path.write_bytes(b'\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x0f' + path.read_bytes())
    describe(folder)


@attack('onnx')
def _(folder: Path) -> None:
    """group before the graph"""
    path = folder / 'engine.onnx'
    path.write_bytes(b'\xa3\x06\xa4\x06' + path.read_bytes())  # which protobuf skips
    describe(folder)


@attack('onnx')
def _(folder: Path) -> None:
    """graphs in a graph, 3000 levels"""
    inner = b''
    for _ in range(1000):  # graph.node.attribute.g
        attribute = b'\x32' + varint(len(inner)) + inner
        node = b'\x2a' + varint(len(attribute)) + attribute
        inner = b'\x0a' + varint(len(node)) + node
    (folder / 'engine.onnx').write_bytes(b'\x3a' + varint(len(inner)) + inner)
    describe(folder)


@attack('onnx')
def _(folder: Path) -> None:
    """description of 100,000 lists"""
    (folder / 'engine.json').write_text('[' * 100_000)


@attack('onnx')
def _(folder: Path) -> None:
    """number of 100,000 digits"""
    text = (folder / 'engine.json').read_text()
    (folder / 'engine.json').write_text(text.replace('"tolerance": ', f'"tolerance": 1{"0" * 100_000}, "x": '))


@attack('onnx')
def _(folder: Path) -> None:
    """description that is a pipe"""
    (folder / 'engine.json').unlink()
    os.mkfifo(folder / 'engine.json')


@attack('onnx')
def _(folder: Path) -> None:
    """files out of the folder"""
    content = json.loads((folder / 'engine.json').read_text())
    describe(folder, files={**content['files'], '../../etc/passwd': '0'})


@attack('onnx')
def _(folder: Path) -> None:
    """a hundred thousand files"""
    content = json.loads((folder / 'engine.json').read_text())
    describe(folder, files={**content['files'], **{f'{number}': '0' for number in range(100_000)}})


@attack('openvino')
def _(folder: Path) -> None:
    """cache in a folder of the attacker's"""
    describe(folder, openvino_properties=dict(CACHE_DIR=str(folder.parent / 'escaped')))


@attack('openvino')
def _(folder: Path) -> None:
    """weights beyond their file"""
    (folder / 'engine.bin').write_bytes((folder / 'engine.bin').read_bytes()[:64])
    describe(folder)


@attack('openvino')
def _(folder: Path) -> None:
    """entities that make a billion words"""
    words = ''.join(f'<!ENTITY a{number} "{f"&a{number - 1};" * 10}">' for number in range(1, 10))
    edit_xml(folder, '<net ', f'<!DOCTYPE net [<!ENTITY a0 "lol">{words}]><net note="&a9;" ')


@attack('openvino')
def _(folder: Path) -> None:
    """weights that are a folder"""
    (folder / 'engine.bin').unlink()
    (folder / 'engine.bin').mkdir()


@attack('openvino')
def _(folder: Path) -> None:
    """network of 100,000 elements in one another"""
    (folder / 'engine.xml').write_text('<net>' * 100_000)
    describe(folder)


def varint(number: int) -> bytes:
    content = b''
    while number > 127:
        content += struct.pack('B', number & 127 | 128)
        number >>= 7
    return content + struct.pack('B', number)
