"""What an ONNX file says of other files, read without a library: an engine is used where the package onnx is not."""

from __future__ import annotations

from collections.abc import Iterator

# Of the messages of onnx.proto that can hold a tensor: numbers of their fields, and what is in these.
MESSAGES = {
    'model': {7: 'graph', 20: 'training', 25: 'function'},
    'training': {1: 'graph', 2: 'graph'},
    'function': {7: 'node', 11: 'attribute'},
    'graph': {1: 'node', 5: 'tensor', 15: 'sparse tensor'},
    'node': {5: 'attribute'},
    'attribute': {5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse tensor', 23: 'sparse tensor'},
    'sparse tensor': {1: 'tensor', 2: 'tensor'},
    'tensor': {13: 'entry'},  # external_data: keys and values
}
KEY, VALUE = 1, 2
SIZES = {1: 8, 5: 4}  # bytes of a field, by its type in protobuf's encoding
VARINT, DELIMITED = 0, 2


def external_files(content: bytes) -> set[str]:
    """Names of the files that hold tensors of the ONNX model in `content`, whatever the order of its fields.

    Raises:
        ValueError: it is not in protobuf's encoding (https://protobuf.dev/programming-guides/encoding).
    """
    names = set()
    waiting = [('model', memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        if kind == 'entry':
            entry = dict(_fields(message))
            if bytes(entry.get(KEY, b'')) == b'location':
                names.add(bytes(entry.get(VALUE, b'')).decode(errors='replace'))
            continue

        for number, value in _fields(message):
            if number in MESSAGES[kind]:
                waiting.append((MESSAGES[kind][number], value))
    return names


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, place = _varint(message, place)
            continue

        if kind == DELIMITED:
            length, place = _varint(message, place)
        elif kind in SIZES:
            length = SIZES[kind]
        else:
            raise ValueError(f'a field of type {kind}')

        if place + length > len(message):
            raise ValueError(f'a field of {length} bytes beyond its end')
        if kind == DELIMITED:
            yield number, message[place:place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, least significant first, and the place behind it."""
    number, shift = 0, 0
    while place < len(message) and shift < 70:
        byte = message[place]
        number, shift, place = number | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return number, place
    raise ValueError('a number without an end')
