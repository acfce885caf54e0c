"""`.safetensors` files: what safetensors itself reads, and damage that the format alone would not show."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from repvgg_mm import UserError
from repvgg_mm.files.checkpoint import read_checkpoint, write_checkpoint
from repvgg_mm.files.tensor_file import checksum, is_tensor_file, read_tensor_file, write_tensor_file


def tensors() -> dict[str, torch.Tensor]:
    return {
        'float': torch.linspace(-1, 1, 6).reshape(2, 3),
        'half': torch.ones(3, dtype=torch.bfloat16),
        'count': torch.tensor(7),
        'empty': torch.zeros(0, 2),
    }


def assert_same(found: dict, expected: dict) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_safetensors_reads_what_is_written_and_so_do_we(tmp_path):
    path = tmp_path / 'a.safetensors'
    write_tensor_file(path, dict(state_dict=tensors(), meta=dict(epoch=3, classes=['disk'])))
    assert_same(load_file(path), tensors())
    found = read_tensor_file(path, 'cpu')
    assert_same(found['state_dict'], tensors())
    assert found['meta'] == dict(epoch=3, classes=['disk']) and set(found) == {'state_dict', 'meta'}


def test_files_of_others_have_no_checksum_and_are_read(tmp_path):
    save_file(tensors(), tmp_path / 'a.safetensors')
    found = read_tensor_file(tmp_path / 'a.safetensors', 'cpu')
    assert_same(found['state_dict'], tensors())
    assert found['meta'] == {}


def test_shared_and_strided_tensors_are_written_apart(tmp_path):
    whole = torch.arange(6.).reshape(2, 3)
    shared = dict(first=whole, second=whole, transposed=whole.T)
    write_tensor_file(tmp_path / 'a.safetensors', shared)
    assert_same(load_file(tmp_path / 'a.safetensors'), shared)


def test_every_bit_of_the_tensors_is_in_the_checksum(tmp_path):
    path = tmp_path / 'a.safetensors'
    write_tensor_file(path, tensors())
    whole = path.read_bytes()
    start = len(whole) - sum(tensor.numel() * tensor.element_size() for tensor in tensors().values())
    for place in range(start, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        load_file(path)  # the format itself does not notice
        with pytest.raises(ValueError, match='does not have the sha256'):
            read_tensor_file(path, 'cpu')


def test_names_shapes_types_and_meta_are_in_the_checksum():
    first = dict(a=torch.zeros(4), b=torch.ones(4))
    others = [
        (dict(a=torch.ones(4), b=torch.zeros(4)), '{}'),
        (dict(a=torch.zeros(4), c=torch.ones(4)), '{}'),
        (dict(a=torch.zeros(2, 2), b=torch.ones(4)), '{}'),
        (dict(a=torch.zeros(4, dtype=torch.int32), b=torch.ones(4)), '{}'),
        (first, '{"epoch": 1}'),
    ]
    digests = {checksum(*other) for other in others}
    assert len(digests) == 5 and checksum(first, '{}') not in digests
    assert checksum(dict(reversed(first.items())), '{}') == checksum(first, '{}')  # the order is the format's own


def test_the_format_is_known_by_its_content(tmp_path):
    write_tensor_file(tmp_path / 'a.pth', tensors())
    torch.save(tensors(), tmp_path / 'b.safetensors')
    (tmp_path / 'c').write_bytes((1 << 40).to_bytes(8, 'little') + b'{')
    (tmp_path / 'd').write_bytes(b'')
    assert is_tensor_file(tmp_path / 'a.pth')
    assert not any(is_tensor_file(tmp_path / name) for name in ('b.safetensors', 'c', 'd'))


@pytest.mark.parametrize('checkpoint, message', [
    (dict(state_dict=dict(a=torch.ones(1)), optimizer={}), r"holds tensors and meta, .* has also \['optimizer'\]"),
    (dict(a=torch.ones(1), b='text'), r"has also \['b'\]"),
    (dict(state_dict=dict(a=torch.ones(1)), meta=dict(when=object())), 'meta is JSON, and this one is not')])
def test_what_the_format_has_no_place_for(checkpoint, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_tensor_file(tmp_path / 'a.safetensors', checkpoint)
    assert not (tmp_path / 'a.safetensors').exists()


def test_meta_of_another_kind(tmp_path):
    save_file(dict(a=torch.ones(1)), tmp_path / 'a.safetensors', metadata=dict(meta=json.dumps([1])))
    with pytest.raises(ValueError, match="'meta' is a list, not a dict"):
        read_tensor_file(tmp_path / 'a.safetensors', 'cpu')


def test_the_checksum_is_in_the_metadata(tmp_path):
    write_tensor_file(tmp_path / 'a.safetensors', dict(state_dict=tensors(), meta=dict(epoch=3)))
    with safe_open(tmp_path / 'a.safetensors', framework='pt') as file:
        metadata = file.metadata()
    assert metadata['sha256'] == checksum(tensors(), metadata['meta']) and json.loads(metadata['meta']) == dict(epoch=3)


def test_without_the_package_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    write_tensor_file(tmp_path / 'a.safetensors', dict(a=torch.ones(2)))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'safetensors']:
        monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: read_checkpoint(tmp_path / 'a.safetensors'),
                lambda: write_checkpoint(tmp_path / 'b.safetensors', dict(a=torch.ones(2)))):
        with pytest.raises(UserError, match=r'need the package safetensors, .* Install it: pip install safetensors'):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ['a.safetensors']
