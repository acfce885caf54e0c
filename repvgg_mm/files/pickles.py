"""What a pickle asks for, read from its opcodes: nothing is unpickled."""

from __future__ import annotations

import pickletools
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import BinaryIO

MEMO = ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE')
GET = ('GET', 'BINGET', 'LONG_BINGET')
MAX_PICKLES = 5  # of torch's format before 1.6: magic number, version, system, the object, keys of its storages


def globals_of_file(file: BinaryIO) -> list[str]:
    """Names of the globals that unpickling a checkpoint file would look up, in their order, each once.

    `file` is in torch's zip format (TorchScript archives too), its older format, its tar format, or a
    plain pickle. A damaged pickle is read as far as it goes.
    """
    found = (name for pickled in _pickles_of(file) for name in globals_of_pickle(pickled))
    return list(dict.fromkeys(found))


def globals_of_pickle(file: BinaryIO) -> Iterator[str]:
    """Names of the globals in the pickle at the file's position, which is then behind it."""
    recent: list[object] = []  # what the last two opcodes pushed; only strings matter
    memo: dict[int, object] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ('GLOBAL', 'INST'):
                module, name = argument.split(' ', 1)
                yield todays_name(module, name)
            elif opcode.name == 'STACK_GLOBAL':
                yield todays_name(*map(str, recent))
            elif opcode.name.startswith('EXT'):
                yield f'copyreg.extension_{argument}'

            if opcode.name in MEMO:
                place = len(memo) if argument is None else argument
                memo[place] = recent[-1] if recent else None
            else:
                pushed = memo.get(argument) if opcode.name in GET else argument
                recent = [*recent[-1:], pushed]
    except (ValueError, UnicodeDecodeError):
        pass  # damaged, or no pickle


def todays_name(module: str = '', name: str = '') -> str:
    """A global's name in Python 3; pickles up to protocol 2 name it as Python 2 did: `__builtin__.eval`."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def _pickles_of(file: BinaryIO) -> Iterator[BinaryIO]:
    file.seek(0)
    if file.read(4) == b'PK\x03\x04':
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith('.pkl')]
            for name in names:
                with archive.open(name) as pickled:
                    yield pickled
        return

    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode='r:') as archive:
            for member in archive:
                if member.name in ('storages', 'tensors', 'pickle'):
                    yield archive.extractfile(member)
    except tarfile.TarError:
        file.seek(0)
        for _ in range(MAX_PICKLES):
            yield file
