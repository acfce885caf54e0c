"""The reader of pickles: builds what checkpoints hold, refuses every other name and every other use of a name."""

from __future__ import annotations

import io
import pickle
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_checkpoints import PLACES_OF_TUPLES, tuples
from mmengine.logging import HistoryBuffer

from repvgg_mm import UserError, read_checkpoint
from repvgg_mm.files.unpickler import Refused, SafeUnpickler, find


def read(pickled: bytes) -> object:
    return SafeUnpickler(io.BytesIO(pickled)).load()


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('content', [
    dict(text='a', numbers=[1, 2.5, 1 << 80], nothing=None, truth=True, pair=(1, 2), raw=b'\x00\xff'),
    dict(kinds={1, 2}, frozen=frozenset({3}), complex=1 + 2j, counts=Counter([5, 5, 8])),
    dict(ordered=OrderedDict(a=1), groups=defaultdict(dict, a=dict(b=1)), args=Namespace(lr=0.1, opt='sgd')),
    dict(dtype=torch.bfloat16, size=torch.Size([1, 2]), device=torch.device('cpu')),
    dict(scalar=np.float64(0.25), whole=np.int64(7), truth=np.bool_(True)),
], ids=lambda content: next(iter(content)))
def test_plain_values_are_built(content, protocol):
    assert read(pickle.dumps(content, protocol)) == content


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('array', [
    np.arange(6.).reshape(2, 3), np.asfortranarray(np.arange(6, dtype='>i4').reshape(2, 3)), np.zeros((0, 3)),
    np.array(True), np.array([1 + 2j])], ids=str)
def test_arrays_of_numbers_are_built(array, protocol):
    found = read(pickle.dumps(array, protocol))
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder('=')


@pytest.mark.parametrize('order', ['<', '>', '='])
def test_arrays_and_numbers_that_share_a_type(order):
    dtype = np.dtype(f'{order}i4')
    content = [np.arange(3, dtype=dtype), np.arange(1, 4, dtype=dtype), dtype.type(5), dtype]
    found = read(pickle.dumps(content, 2))
    for array, expected in zip(found[:3], content):
        np.testing.assert_array_equal(array, expected)
    assert found[3] == dtype


def lists(levels: int) -> bytes:
    return b'\x80\x02' + b']' * levels + b'a' * (levels - 1) + b'.'


def test_values_in_many_others():
    assert read(tuples('nothing', 3)) == ((((),),),) and read(tuples('nothing', 90)) is not None
    assert read(lists(3)) == [[[]]] and read(lists(90)) is not None
    for pickled in (tuples('nothing', 110), tuples('nothing', 300_000), lists(110), lists(300_000)):
        with pytest.raises(Refused, match=r'more than 100 .*tuples in one another'):
            read(pickled)


@pytest.mark.parametrize('place', PLACES_OF_TUPLES)
def test_a_deep_tuple_is_refused_before_it_is_hashed(place):
    """Python's hash of 300,000 of them is a segmentation fault; with 110 the test fails instead."""
    with pytest.raises(Refused, match='more than 100 tuples in one another'):
        read(tuples(place, 110))


def test_a_list_in_itself_and_a_value_that_stands_often():
    within: list = []
    within.append(within)
    doubled: object = ()
    for levels in range(60):
        doubled = (doubled, doubled)
        if levels == 10:
            assert read(pickle.dumps(doubled, 2)) is not None
    laughs = ['ha'] * 10
    for _ in range(8):
        laughs = [laughs] * 10
    for content in (within, doubled, laughs, Namespace(a=laughs), {1: laughs}):
        with pytest.raises(Refused, match='a list in itself, or some millions of values'):
            read(pickle.dumps(content, 2))


def test_a_log_history_is_built():
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    found = read(pickle.dumps(history, 2))
    assert found.data[0].tolist() == [0.5, 0.25] and found.mean() == history.mean()


def test_the_name_of_numpys_module_in_either_version():
    pickled = pickle.dumps(np.arange(3), 2)
    for written in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
        other = pickled.replace(b'numpy._core.multiarray', written).replace(b'numpy.core.multiarray', written)
        np.testing.assert_array_equal(read(other), np.arange(3))


# Programs of a pickle: what each does, and its opcodes.
PROGRAMS = {
    'sets an attribute of a function': b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'x'\nI1\nstb.",
    'sets an attribute of a class': b"cmmengine.logging.history_buffer\nHistoryBuffer\n(N}S'mean'\nI1\nstb.",
    'calls a class that is only named': b'cnumpy\nndarray\n((I3\nttR.',
    'calls what it made': b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81(tR.",
    'gives a new object arguments': b"cmmengine.logging.history_buffer\nHistoryBuffer\n(I1\nt\x81.",
    'INST of a name that is known': b"(icollections\nOrderedDict\n.",
    'OBJ of a name that is known': b"(ccollections\nOrderedDict\no.",
    'a number of a thousand digits': pickle.dumps(10**1000, 2),
    'an extension': b'\x80\x02\x82\x01.',
    'an array of pointers': b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR.",
    'a type with fields of pointers': b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR.",
    'fields in the state of a type': (
        b"cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR(I3\nS'|'\nN(S'a'\nt}S'a'\n(NI0\ntsI8\nI1\nI0\ntb."),
    'a code that is no latin1': b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
    'an array of another class': b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\ndict\n(I0\ntS'b'\ntR.",
    'an array of a size of its own': b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I9999\ntS'b'\ntR.",
    'one item of a list': b'(lI0\nI5\ns.',
    'an item of a tuple': b"(I1\nI2\nt(I0\nI5\nu.",
    'an element of a dict': b'}I1\na.',
    'elements of a set': b'cbuiltins\nset\n((ltR(I1\ne.',
    'a method of a log history': (
        b"cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\nS'__init__'\ntR."),
    'a method of a dict': b"cbuiltins\ngetattr\n(cbuiltins\ndict\nS'update'\ntR.",
    'a module of torch': b'ctorch\nload\n.',
    'torch reading bytes': b'ctorch.storage\n_load_from_bytes\n.',
    'a name with a dot': b'\x80\x04\x8c\x05torch\x8c\x0cstorage.load\x93.',
    'a name of Python 2': b'c__builtin__\neval\n.',
    'a hook of a tensor': b"ctorch._utils\n_rebuild_parameter\n(NI00\n}S'a'\nI1\nstR.",
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_what_no_writer_does_is_refused(name):
    with pytest.raises(Refused):
        read(PROGRAMS[name])
    assert not hasattr(torch._utils._rebuild_tensor_v2, 'x') and callable(HistoryBuffer.mean)


def test_an_array_whose_content_is_short():
    pickled = pickle.dumps(np.arange(3), 2)
    assert b'K\x03\x85' in pickled  # the shape
    with pytest.raises(Refused, match='the size of a numpy array'):
        read(pickled.replace(b'K\x03\x85', b'K\x7f\x85'))


def rewritten(path: Path, old: bytes, new: bytes) -> Path:
    """A zip checkpoint whose pickle says something else."""
    changed = path.with_name('changed.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, 'w') as target:
        for record in source.infolist():
            content = source.read(record)
            if record.filename.endswith('data.pkl'):
                assert old in content
                content = content.replace(old, new)
            target.writestr(record.filename, content)
    return changed


@pytest.mark.parametrize('old, new, message', [
    (b'K\x05tq', b'K\x7ftq', '127 elements of a record of 20 bytes'),  # of the storage
    (b'K\x05\x85', b'K\x7f\x85', 'a tensor beyond its storage'),       # of the tensor
    (b'QK\x00', b'QK\x07', 'a tensor beyond its storage')])            # its offset
def test_memory_behind_a_record_is_not_read(tmp_path, old, new, message):
    path = tmp_path / 'five.pth'
    torch.save(dict(weight=torch.arange(5.)), path)
    assert read_checkpoint(path)['weight'].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=message):
        read_checkpoint(rewritten(path, old, new))


@pytest.mark.parametrize('arguments, message', [
    ((0, (2, 2), (2,)), 'sizes and strides'), ((-1, (2,), (1,)), 'sizes of a tensor'),
    ((0, (2,), (-1,)), 'sizes of a tensor'), ((0, (-2, 0), (1, 1)), 'sizes of a tensor'),
    ((0, (2, 3), (2, 1)), 'beyond its storage'), ((3, (2,), (1,)), 'beyond its storage'),
    ((0, (2,), (1,), False, {1: print}), 'hooks of a tensor')])
def test_a_tensor_that_torch_would_not_write(arguments, message):
    build = find('torch._utils._rebuild_tensor_v2')
    storage = torch.arange(4.)._typed_storage()
    assert build(storage, 1, (3,), (1,), False, OrderedDict()).tolist() == [1, 2, 3]
    assert build(storage, 0, (2, 0), (1, 1), False, OrderedDict()).shape == (2, 0)
    with pytest.raises(Refused, match=message):
        build(storage, *arguments)


@pytest.mark.parametrize('function, kind', [(print, torch.Tensor), ('torch._utils._rebuild_tensor_v2', dict)])
def test_a_tensor_with_attributes_is_built_by_the_same_functions(function, kind):
    build = find('torch._tensor._rebuild_from_type_v2')
    tensor = find('torch._utils._rebuild_tensor_v2')
    arguments = (torch.arange(4.)._typed_storage(), 0, (4,), (1,), False, OrderedDict())
    assert build(tensor, torch.Tensor, arguments, dict(note=1)).tolist() == [0, 1, 2, 3]
    with pytest.raises(Refused, match='a kind of tensor'):
        build(find(function) if isinstance(function, str) else function, kind, arguments, {})


def test_strided_tensors_and_parameters(tmp_path):
    base = torch.arange(12.).view(3, 4)
    content = dict(part=base[1:, 1:3], turned=base.t(), empty=base[:0], number=torch.tensor(3),
                   weight=torch.nn.Parameter(base), half=base.to(torch.bfloat16), whole=base)
    for legacy in (False, True):
        torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
        found = read_checkpoint(tmp_path / 'a.pth')
        for name, value in content.items():
            assert type(found[name]) is type(value) and found[name].stride() == value.stride(), name
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        assert found['part'].untyped_storage().data_ptr() == found['whole'].untyped_storage().data_ptr()


def test_an_expanded_tensor(tmp_path):
    """It repeats its numbers; whoever copies it takes memory for each."""
    path = tmp_path / 'a.pth'
    torch.save(dict(weight=torch.ones(1).expand(500, 500)), path)
    assert read_checkpoint(path)['weight'].stride() == (0, 0)
    torch.save(dict(weight=torch.ones(1).expand(1000, 1000)), path)
    with pytest.raises(UserError, match='a tensor of 4000000 bytes from 4'):
        read_checkpoint(path)


def test_a_storage_of_the_older_format_that_is_larger_than_the_file(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(weight=torch.zeros(77)), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b'KMN') == 1  # 77 elements, no view
    path.write_bytes(content.replace(b'KMN', b'M\xff\xffN'))
    with pytest.raises(UserError, match=r'a storage of 262140 bytes in a file of \d+'):
        read_checkpoint(path)


def test_a_small_file_that_takes_a_lot_of_memory(tmp_path):
    path = tmp_path / 'bomb.pth'
    torch.save(dict(weight=torch.zeros(80_000_000)), tmp_path / 'large.pth')
    with zipfile.ZipFile(tmp_path / 'large.pth') as source, \
            zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r'bomb\.pth cannot be read as a checkpoint .*its records take 32\d{7} bytes'):
        read_checkpoint(path)


def test_a_pickle_that_is_larger_than_any_writer_makes(tmp_path, monkeypatch):
    monkeypatch.setattr('repvgg_mm.files.checkpoint.MOST_PICKLED', 1000)
    torch.save(dict(weight=torch.zeros(1000)), tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['weight'].shape == (1000,)
    torch.save(dict(text='a' * 1000), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'data\.pkl has 1\d\d\d bytes beside the tensors'):
        read_checkpoint(tmp_path / 'a.pth')


def test_a_folder_in_an_archive_is_no_record(tmp_path):
    """torch gives the memory that it had reserved for such a record, whatever is in it."""
    path = tmp_path / 'a.pth'
    torch.save(dict(weight=torch.arange(5.)), path)
    whole = bytearray(path.read_bytes())
    for start in range(len(whole)):
        if whole[start:start + 4] == b'PK\x01\x02':
            whole[start + 38] |= 0x10
    path.write_bytes(whole)
    with pytest.raises(UserError, match='marked as a folder'):
        read_checkpoint(path)


def test_torchs_own_wish_for_a_safe_reader(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(history=HistoryBuffer([1.], [1])), tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['history'].data[0].tolist() == [1]


def test_a_program_is_no_checkpoint(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / 'a.pt'))
    with pytest.raises(UserError, match='TorchScript archive, a program'):
        read_checkpoint(tmp_path / 'a.pt')
