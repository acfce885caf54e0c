"""What a pickle asks for is told from its opcodes, as the unpickler itself looks it up, and nothing is run."""

from __future__ import annotations

import collections
import datetime
import io
import operator
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from repvgg_mm.files.pickles import globals_of_file, globals_of_pickle

CONTENT = [
    dict(order=collections.OrderedDict(a=1), path=Path('a'), date=datetime.date(2026, 1, 1)),
    [operator.methodcaller('upper'), print, print, eval],
    dict(weight=torch.ones(2), complex=1j),
]


class Recording(pickle.Unpickler):
    """The unpickler of Python, which tells what it looks up."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: list[str] = []

    def find_class(self, module: str, name: str) -> object:
        found = super().find_class(module, name)
        self.found.append(f'{module}.{name}')
        return found


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('content', CONTENT, ids=['classes', 'functions', 'tensors'])
def test_the_names_are_those_that_unpickling_looks_up(content, protocol):
    pickled = pickle.dumps(content, protocol=protocol)
    unpickler = Recording(io.BytesIO(pickled))
    unpickler.load()
    current = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # names of Python 2, up to protocol 2
    expected = []
    for name in unpickler.found:
        module, _, rest = name.partition('.')
        expected.append(f'{current.get(module, module)}.{rest}')
    assert expected and sorted(set(globals_of_pickle(io.BytesIO(pickled)))) == sorted(set(expected))


def test_nothing_is_looked_up_or_run(tmp_path):
    ran = tmp_path / 'ran'
    pickled = f"cnowhere_to_be_found\nf\n(S'touch {ran}'\niposix\nsystem\n.".encode()
    assert list(globals_of_pickle(io.BytesIO(pickled))) == ['nowhere_to_be_found.f', 'posix.system']
    assert not ran.exists()


def test_a_damaged_pickle_is_read_as_far_as_it_goes():
    pickled = pickle.dumps([print, eval], protocol=2)
    cut = pickled.index(b'eval')
    assert list(globals_of_pickle(io.BytesIO(pickled[:cut]))) == ['builtins.print']
    assert list(globals_of_pickle(io.BytesIO(b'no pickle'))) == []


def save_tar(content: object, path: Path) -> None:
    with tarfile.open(path, 'w') as archive:
        pickled = pickle.dumps(content, protocol=2)
        member = tarfile.TarInfo('pickle')
        member.size = len(pickled)
        archive.addfile(member, io.BytesIO(pickled))


@pytest.mark.parametrize('save', [
    torch.save,
    lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    lambda content, path: path.write_bytes(pickle.dumps(content)),
    save_tar], ids=['zip', 'legacy', 'pickle', 'tar'])
def test_every_format_of_torch_each_name_once(tmp_path, save):
    save(dict(first=datetime.date(2026, 1, 1), second=datetime.date(2026, 1, 2), third=print), tmp_path / 'file')
    with open(tmp_path / 'file', 'rb') as file:
        found = globals_of_file(file)
    found = [name for name in found if name != '_codecs.encode']  # how protocol 2 writes bytes
    assert found == ['datetime.date', 'builtins.print']


def test_a_name_that_is_looked_up_twice_is_told_once():
    twice = b'cposix\nsystem\ncposix\nsystem\n\x86.'
    assert list(globals_of_pickle(io.BytesIO(twice))) == ['posix.system', 'posix.system']
    assert globals_of_file(io.BytesIO(twice)) == ['posix.system']
