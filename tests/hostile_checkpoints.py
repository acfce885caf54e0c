"""Checkpoints that an attacker writes: those that run code, and those that take memory, time or the process down.

`CODE` maps a name to how the file is written, what is in it, given the file that it would create, and what the message
names. `BOMBS` maps a name to a function that writes the file at a path.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from helpers import pspnet_config, randomise_norms
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from repvgg_mm.demo.shapes import CLASSES


class Calls:
    """Unpickling calls `function(*arguments)`."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class ActsOnState:
    """Unpickling's BUILD opcode creates the file that the state names."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict) -> None:
        Path(state['path']).touch()


class ActsAsModule(nn.Module):
    """A whole pickled model that creates a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __setstate__(self, state: dict) -> None:
        Path(state['path']).touch()


def touch(path: Path) -> Calls:
    return Calls(os.system, f'touch {path}')


def script(ran: Path) -> Path:
    path = ran.with_suffix('.py')
    path.write_text(f'open({str(ran)!r}, "w")')
    return path


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def save_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def save_tar(content: object, path: Path) -> None:
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            pickled = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, BytesIO(pickled))


def weights() -> dict[str, torch.Tensor]:
    """Of the model with which the tools are run."""
    return {name: value.clone() for name, value in small_model().state_dict().items()}


@functools.cache
def small_model() -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(MODELS.build(ConfigDict(shapes_model())))


def shapes_model() -> dict:
    """A small PSPNet for the generated images."""
    model = pspnet_config()
    for head in ('decode_head', 'auxiliary_head'):
        model[head]['num_classes'] = len(CLASSES)
    return model


CODE = {
    'os.system': (save_zip, lambda ran: dict(state_dict=weights(), evil=touch(ran)), 'posix.system'),
    'eval': (save_zip, lambda ran: dict(evil=Calls(eval, f'open({str(ran)!r}, "w")')), 'builtins.eval'),
    'exec': (save_zip, lambda ran: dict(evil=Calls(exec, f'open({str(ran)!r}, "w")')), 'builtins.exec'),
    'Popen': (save_zip, lambda ran: dict(evil=Calls(subprocess.Popen, ['touch', str(ran)])), 'subprocess.Popen'),
    'open': (save_zip, lambda ran: dict(evil=Calls(open, str(ran), 'w')), 'open'),
    'message hub': (save_zip, lambda ran: dict(state_dict=weights(), message_hub=dict(
        log_scalars={'train/loss': touch(ran)})), 'posix.system'),
    'optimizer': (save_zip, lambda ran: dict(state_dict=weights(), optimizer=dict(
        state={0: dict(momentum_buffer=touch(ran))}, param_groups=[])), 'posix.system'),
    'meta': (save_zip, lambda ran: dict(state_dict=weights(), meta=dict(seed=touch(ran))), 'posix.system'),
    'key': (save_zip, lambda ran: {'state_dict': weights(), (1, touch(ran)): 1}, 'posix.system'),
    'attribute chain': (save_zip, lambda ran: dict(evil=Calls(
        operator.methodcaller('touch').__call__, Path(ran))), 'pathlib'),
    'BUILD': (save_zip, lambda ran: dict(evil=ActsOnState(str(ran))), 'ActsOnState'),
    'pickled module': (save_zip, lambda ran: ActsAsModule(str(ran)), 'ActsAsModule'),
    'object array': (save_zip, lambda ran: dict(meta=np.array([touch(ran)], dtype=object)), 'posix.system'),
    'copy': (save_zip, lambda ran: dict(evil=Calls(shutil.copyfile, '/dev/null', str(ran))), 'shutil.copyfile'),
    'script': (save_zip, lambda ran: dict(evil=Calls(runpy.run_path, str(script(ran)))), 'runpy.run_path'),
    'bound method': (save_zip, lambda ran: dict(evil=Calls(ran.touch)), 'pathlib'),
    'pickle in a pickle': (save_zip, lambda ran: dict(evil=Calls(pickle.loads, pickle.dumps(touch(ran)))),
                           'pickle.loads'),
    'INST opcode': (save_bytes, lambda ran: f"(dp0\nS'evil'\n(S'touch {ran}'\niposix\nsystem\ns.".encode(),
                    'posix.system'),
    'older format': (save_legacy, lambda ran: dict(state_dict=weights(), evil=touch(ran)), 'posix.system'),
    'STACK_GLOBAL opcode': (save_bytes, lambda ran: pickle.dumps(dict(evil=touch(ran)), protocol=4), 'posix.system'),
    'plain pickle': (save_pickle, lambda ran: dict(evil=touch(ran)), 'posix.system'),
    'tar format': (save_tar, lambda ran: touch(ran), 'posix.system'),
}


def load_trustingly(path: Path, save) -> None:
    """What a reader does that runs the code in a file."""
    if save in (save_zip, save_legacy):
        torch.load(path, weights_only=False)
    elif save is save_tar:
        with tarfile.open(path) as archive:
            pickle.load(archive.extractfile('pickle'))
    else:
        pickle.loads(path.read_bytes())


# --- memory, time and crashes -----------------------------------------------------------------------------------------

BOMBS = {}


def bomb(function):
    """Adds the function that writes a file to `BOMBS`, named by its docstring."""
    BOMBS[function.__doc__] = function
    return function


def run(**changes: object) -> dict:
    """What a checkpoint of a Runner holds, with other parts."""
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    parts = dict(meta=dict(epoch=0, iter=1, seed=1), state_dict=weights(), message_hub=hub, optimizer={})
    return {**parts, **changes}


def of_meta(**meta: object) -> dict:
    return run(meta=dict(epoch=0, iter=1, seed=1) | meta)


def with_pickle(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """A zip checkpoint around a pickle that no Python object gives."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/byteorder', 'little')
        archive.writestr('a/version', '3\n')


def repacked(path: Path, content: object, change) -> None:
    """`content` as torch packs it, each record by `change(name, bytes)`."""
    whole = BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, change(record.filename, source.read(record)))


def laughs(levels: int = 9) -> list:
    """Ten times the same list in a list, level by level: 10^9 elements for whoever prints it."""
    value: list = ['lol'] * 10
    for _ in range(levels - 1):
        value = [value] * 10
    return value


def tensor_header(table: dict, data: bytes = b'') -> bytes:
    """A file of safetensors with this table."""
    header = json.dumps(table).encode()
    return struct.pack('<Q', len(header)) + header + data


@bomb
def _(path: Path) -> None:
    """zip record of 1 GB of zeros"""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', pickle.dumps({}, 2))
        with archive.open('a/data/0', 'w', force_zip64=True) as record:
            for _ in range(1 << 4):
                record.write(bytes(1 << 26))


@bomb
def _(path: Path) -> None:
    """weights of 180 MB in a file of 180 kB"""
    repacked(path, dict(state_dict=dict(weight=torch.zeros(45_000_000))), lambda name, content: content)


@bomb
def _(path: Path) -> None:
    """pickle of 180 MB of zeros, packed"""
    with_pickle(path, b'\x80\x02}X\x01\x00\x00\x00aT' + struct.pack('<I', 180 << 20) + bytes(180 << 20) + b's.',
                zipfile.ZIP_DEFLATED)


@bomb
def _(path: Path) -> None:
    """record packed with bzip2"""
    with_pickle(path, pickle.dumps(run(), 2), zipfile.ZIP_BZIP2)


@bomb
def _(path: Path) -> None:
    """record packed with lzma"""
    with_pickle(path, pickle.dumps(run(), 2), zipfile.ZIP_LZMA)


@bomb
def _(path: Path) -> None:
    """two records of one name"""
    torch.save(run(), path)
    with zipfile.ZipFile(path, 'a') as archive:
        name = next(name for name in archive.namelist() if name.endswith('data/0'))
        archive.writestr(name, bytes(4))


@bomb
def _(path: Path) -> None:
    """record whose size in the directory is a lie"""
    torch.save(run(), path)
    content = bytearray(path.read_bytes())
    start = content.rindex(b'PK\x01\x02')
    content[start + 20:start + 28] = struct.pack('<II', 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)


@bomb
def _(path: Path) -> None:
    """archive that says it has 65535 records"""
    torch.save(run(), path)
    content = bytearray(path.read_bytes())
    start = content.rindex(b'PK\x05\x06')
    content[start + 8:start + 12] = b'\xff\xff\xff\xff'
    path.write_bytes(content)


@bomb
def _(path: Path) -> None:
    """names that lead out of the archive"""
    torch.save(run(), path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('../../escaped', b'out')
        archive.writestr('/tmp/escaped', b'out')


@bomb
def _(path: Path) -> None:
    """numpy scalar of 4 GB"""
    with_pickle(path, b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'V4200000000'\nI00\nI01\ntRS''\ntR.")


@bomb
def _(path: Path) -> None:
    """numpy array of 10^12 elements"""
    pickled = pickle.dumps(dict(a=np.zeros(3)), 2)
    with_pickle(path, pickled.replace(b'K\x03\x85', b'\x8a\x06' + (10**12).to_bytes(6, 'little') + b'\x85'))


@bomb
def _(path: Path) -> None:
    """numpy array of objects without any"""
    with_pickle(path, pickle.dumps(dict(a=np.empty(0, object)), 2))


# Where tuples in one another stand: a pickle before and behind them.
PLACES_OF_TUPLES = {
    'a dict, as a key': (b'\x80\x02}', b'K\x01s.'),
    'a dict, as one of its keys': (b'\x80\x02}(', b'K\x01u.'),
    'a dict of an older protocol': (b'\x80\x02(', b'K\x01d.'),
    'a set': (b'\x80\x04\x8f(', b'\x90.'),
    'a frozen set': (b'\x80\x04(', b'\x91.'),
    'a set that is called': (b'\x80\x02cbuiltins\nset\n(](', b'etR.'),
    'a counter': (b'\x80\x02ccollections\nCounter\n(](', b'etR.'),
    'a size': (b'\x80\x02ctorch\nSize\n(](', b'etR.'),
    'the key of a storage': (b'\x80\x02', b'Q.'),
    'nothing': (b'\x80\x02', b'.'),
}


def tuples(place: str, levels: int) -> bytes:
    """A pickle of an empty tuple in `levels` others, in one of `PLACES_OF_TUPLES`."""
    before, behind = PLACES_OF_TUPLES[place]
    return before + b')' + b'\x85' * levels + behind


def with_tuples(place: str, path: Path) -> None:
    with_pickle(path, tuples(place, 300_000))


for place in PLACES_OF_TUPLES:
    BOMBS[f'300,000 tuples in {place}'] = functools.partial(with_tuples, place)


@bomb
def _(path: Path) -> None:
    """epoch that prints as 10^9 words"""
    torch.save(of_meta(epoch=laughs()), path)


@bomb
def _(path: Path) -> None:
    """classes that print as 10^9 words"""
    torch.save(of_meta(dataset_meta=dict(classes=laughs())), path)


@bomb
def _(path: Path) -> None:
    """names of weights that are 10^9 words"""
    torch.save(dict(state_dict=laughs()), path)


@bomb
def _(path: Path) -> None:
    """epoch of 100,000 digits"""
    torch.save(of_meta(epoch=10**100_000), path)


@bomb
def _(path: Path) -> None:
    """number of 2^31 bytes in a pickle of ten"""
    with_pickle(path, b'\x80\x02\x8b' + struct.pack('<i', 2**31 - 1) + b'\x01.')


@bomb
def _(path: Path) -> None:
    """text of 2^60 bytes in a pickle of ten"""
    with_pickle(path, b'\x80\x04\x8d' + struct.pack('<Q', 2**60) + b'a.')


@bomb
def _(path: Path) -> None:
    """frame of 2^60 bytes"""
    with_pickle(path, b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'}.')


@bomb
def _(path: Path) -> None:
    """memo at 2^31"""
    with_pickle(path, b'\x80\x02}r' + struct.pack('<I', 2**31 - 1) + b'.')


@bomb
def _(path: Path) -> None:
    """pickle that takes more from its stack than there is"""
    with_pickle(path, b'\x80\x02R00tb.')


@bomb
def _(path: Path) -> None:
    """one number as a tensor of 10^10"""
    torch.save(run(state_dict={name: torch.zeros(1).expand(100_000, 100_000) for name in weights()}), path)


@bomb
def _(path: Path) -> None:
    """older format with a storage of 10^13 bytes"""
    torch.save(dict(state_dict=dict(weight=torch.zeros(77))), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'KMN', b'\x8a\x06' + (10**13 // 4).to_bytes(6, 'little') + b'N'))


@bomb
def _(path: Path) -> None:
    """older format with a storage of 40 GB"""
    torch.save(dict(state_dict=dict(weight=torch.zeros(77))), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'KMN', b'\x8a\x06' + (10**10).to_bytes(6, 'little') + b'N'))


@bomb
def _(path: Path) -> None:
    """storage of a kind that is none"""
    content = pickle.dumps(0)
    repacked(path, run(), lambda name, old: old.replace(b'FloatStorage', b'load') if 'pkl' in name else old or content)


@bomb
def _(path: Path) -> None:
    """sparse tensors"""
    torch.save(run(state_dict={name: value.to_sparse() for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """tensors without memory"""
    torch.save(run(state_dict={name: value.to('meta') for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """complex weights"""
    torch.save(run(state_dict={name: value * 1j for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """whole numbers for weights"""
    torch.save(run(state_dict={name: value.to(torch.int8) for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """quantised weights"""
    scale = dict(scale=0.1, zero_point=0, dtype=torch.qint8)
    torch.save(run(state_dict={
        name: torch.quantize_per_tensor(value.float(), **scale) for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """names that clear the screen"""
    torch.save(run(state_dict={f'\x1b[2J\x1b]0;owned\x07{name}': value for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """names that are numbers"""
    torch.save(run(state_dict=dict(enumerate(weights().values()))), path)


@bomb
def _(path: Path) -> None:
    """names of a million letters"""
    torch.save(run(state_dict={name + 'a' * 1_000_000: value for name, value in weights().items()}), path)


@bomb
def _(path: Path) -> None:
    """weights in themselves"""
    state_dict = weights()
    state_dict['self'] = state_dict
    torch.save(run(state_dict=state_dict), path)


@bomb
def _(path: Path) -> None:
    """safetensors with a header of 2^62 bytes"""
    path.write_bytes(struct.pack('<Q', 2**62) + b'{}')


@bomb
def _(path: Path) -> None:
    """safetensors with 100,000 lists in its header"""
    header = b'{"__metadata__": ' + b'[' * 100_000
    path.write_bytes(struct.pack('<Q', len(header)) + header)


@bomb
def _(path: Path) -> None:
    """safetensors with a tensor beyond the file"""
    table = dict(dtype='F32', shape=[10**6, 10**6], data_offsets=[0, 4 * 10**12])
    path.write_bytes(tensor_header(dict(weight=table)))


@bomb
def _(path: Path) -> None:
    """safetensors with two tensors in one place"""
    table = dict(dtype='F32', shape=[1], data_offsets=[0, 4])
    path.write_bytes(tensor_header(dict(a=table, b=table), bytes(4)))


@bomb
def _(path: Path) -> None:
    """safetensors with sizes that overflow"""
    table = dict(dtype='F32', shape=[2**32, 2**32], data_offsets=[0, 0])
    path.write_bytes(tensor_header(dict(weight=table)))


@bomb
def _(path: Path) -> None:
    """safetensors whose meta is 100,000 lists"""
    metadata = dict(meta='[' * 100_000)
    table = dict(dtype='F32', shape=[1], data_offsets=[0, 4])
    path.write_bytes(tensor_header(dict(__metadata__=metadata, weight=table), bytes(4)))


@bomb
def _(path: Path) -> None:
    """sparse file of 100 GB"""
    with open(path, 'wb') as file:
        file.write(b'PK\x03\x04')
        file.truncate(100 << 30)


@bomb
def _(path: Path) -> None:
    """pipe that nobody writes to"""
    os.mkfifo(path)


@bomb
def _(path: Path) -> None:
    """link to itself"""
    path.symlink_to(path)
