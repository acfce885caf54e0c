"""A reader of pickles that builds what checkpoints of known writers hold, by name, and calls nothing else.

It does not lean on torch's `weights_only`, whose holes and list of types depend on torch's version: CVE-2025-32434
(below torch 2.6) and CVE-2026-24747 (below 2.10) are open where most users are.
"""

from __future__ import annotations

import codecs
import math
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import torch

from .pickles import todays_name

KINDS_OF_NUMBERS = 'biufc'  # numpy's: truth values, integers, floats, complex numbers
STATISTICS = ('min', 'max', 'current', 'mean')  # of mmengine's log histories
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)
MOST_LEVELS = 100  # of dicts, lists and tuples in one another; mmengine's checkpoints have 8
MOST_VALUES = 10_000_000  # in them, each as often as it stands somewhere
MOST_EXPANDED = 1 << 20  # bytes that an expanded tensor, which repeats its numbers, may have beyond its storage
IN_ITSELF = (0, MOST_VALUES)
CONTAINERS = (Mapping, list, tuple, set, frozenset, Namespace)
NO_DTYPE_STATE = (None, None, None, -1, -1, 0)  # of fields, subarrays, alignment


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that is not on the list, or does with it what its writers do not."""


# --- what is called, with the arguments that its writers give ---------------------------------------------------------

def _tensor(storage: object, offset: int, size: tuple, stride: tuple, *rest: object) -> torch.Tensor:
    """A tensor as torch writes it, within its storage and without hooks, which are code."""
    _expect(len(size) == len(stride), 'sizes and strides of a tensor')
    _expect(all(number >= 0 for number in (offset, *size, *stride)), 'sizes of a tensor')
    last = sum((length - 1) * step for length, step in zip(size, stride))
    stored = storage._untyped_storage.nbytes()
    elements = stored // storage.dtype.itemsize
    _expect(0 in size or offset + last < elements, 'a tensor beyond its storage')
    copied = math.prod(size) * storage.dtype.itemsize
    _expect(copied <= stored + MOST_EXPANDED, f'a tensor of {copied} bytes from {stored}')
    requires_grad, hooks = rest[:2] if rest else (False, OrderedDict())
    _expect(not hooks, 'hooks of a tensor')
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, OrderedDict())


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Mapping, *state: object) -> torch.nn.Parameter:
    _expect(not hooks, 'hooks of a parameter')
    return torch._utils._rebuild_parameter(data, requires_grad, OrderedDict())


def _typed_tensor(function: Callable, kind: type, arguments: tuple, state: object) -> torch.Tensor:
    """A tensor with attributes, which stay behind."""
    _expect(function in (_tensor, _parameter) and kind in TENSOR_TYPES, 'a kind of tensor')
    return function(*arguments)


def _bytes(text: str, encoding: str = 'latin1') -> bytes:
    """How protocols below 3 write bytes."""
    _expect(encoding == 'latin1', f'the encoding {encoding!r}')
    return codecs.encode(text, 'latin1')


def _no_bytes() -> bytes:
    """How they write none."""
    return b''


def _dtype(code: str, *rest: object) -> np.dtype:
    """Of plain numbers: an object in an array would be a pointer."""
    dtype = np.dtype(code, align=False, copy=True)  # a copy, because a state follows
    _expect(dtype.kind in KINDS_OF_NUMBERS, f'numpy arrays of {dtype}')
    return dtype


def _empty_array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """What numpy fills with the state that follows."""
    _expect(kind is np.ndarray and shape == (0,), f'a numpy {kind}')
    return np.ndarray((0,), np.int8)


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    return np.frombuffer(content, dtype, count=1)[0]


def _statistic(owner: object, name: str) -> object:
    """`getattr` for the one use that log histories make of it: HistoryBuffer.min and its like."""
    _expect(owner is _history_buffer() and name in STATISTICS, f'builtins.getattr of {owner!r}')
    return getattr(owner, name)


def _history_buffer() -> type | None:
    """mmengine's, where there is mmengine."""
    try:
        from mmengine.logging import HistoryBuffer
    except ImportError:
        return None
    return HistoryBuffer


CALLED = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _typed_tensor,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    '_codecs.encode': _bytes,
    'builtins.bytes': _no_bytes,
    'numpy.dtype': _dtype,
    'numpy.core.multiarray._reconstruct': _empty_array,   # as numpy 1 writes it
    'numpy._core.multiarray._reconstruct': _empty_array,  # as numpy 2 does
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    'builtins.getattr': _statistic,
    'builtins.set': set,
    'builtins.frozenset': frozenset,
    'builtins.complex': complex,
    'collections.OrderedDict': OrderedDict,
    'collections.defaultdict': defaultdict,
    'collections.Counter': Counter,  # milestones of a learning rate
}

# --- what is built or named without a call ----------------------------------------------------------------------------

MADE = {
    'argparse.Namespace': Namespace,           # timm's `args`
    'yacs.config.CfgNode': OrderedDict,        # the official files' config; torch can fill it
    'collections.OrderedDict': OrderedDict,
}
NAMED = {
    'numpy.ndarray': np.ndarray,
    'torch.Tensor': torch.Tensor,
    'torch.nn.parameter.Parameter': torch.nn.Parameter,
    'torch.UntypedStorage': torch.UntypedStorage,
    'torch.storage.UntypedStorage': torch.UntypedStorage,
    'builtins.dict': dict,
    'builtins.list': list,
    'builtins.int': int,
    'builtins.float': float,
}


def find(name: str) -> object:
    """What a global of this name, as Python 3 names it, stands for.

    Raises:
        Refused: it is not on the list.
    """
    for known in (CALLED, MADE, NAMED):
        if name in known:
            return known[name]

    module, _, attribute = name.rpartition('.')
    if module == 'torch' and isinstance(getattr(torch, attribute, None), torch.dtype):
        return getattr(torch, attribute)
    if name == HISTORY and _history_buffer() is not None:
        return _history_buffer()
    raise Refused(f'Unsupported global: {name}')


# --- the machine ------------------------------------------------------------------------------------------------------

def _counted(load: Callable[[pickle._Unpickler], None]) -> Callable[[SafeUnpickler], None]:
    """An opcode that makes a tuple, whose levels are counted."""
    def load_and_count(unpickler: SafeUnpickler) -> None:
        load(unpickler)
        unpickler.count_levels(unpickler.stack[-1])
    return load_and_count


class SafeUnpickler(pickle._Unpickler):  # the one in Python, whose opcodes can be told apart
    """Runs a pickle with the names of `find`; each opcode acts on the types that its writers use it for."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load(self) -> object:
        self.levels: dict[int, tuple[tuple, int]] = {}
        content = super().load()
        _check_structure(content)
        return content

    def find_class(self, module: str, name: str) -> object:
        return find(todays_name(module, name))

    def load_reduce(self) -> None:
        function = self.stack[-2]
        _expect(any(function is known for known in CALLED.values()), f'a call of {function!r}')
        super().load_reduce()

    def load_newobj(self) -> None:
        kind = self.stack[-2]
        _expect(kind in (*MADE.values(), _history_buffer()) and self.stack[-1] == (), f'a new {kind!r}')
        super().load_newobj()

    def load_build(self) -> None:
        owner, state = self.stack[-2:]
        if isinstance(owner, np.ndarray):
            _check_array_state(state)
        elif isinstance(owner, np.dtype):
            self.stack.pop()
            self._replace(owner, _dtype_in_order(owner, state))
            return
        else:
            known = type(owner) in (Namespace, OrderedDict, _history_buffer())
            _expect(known and type(state) is dict, f'a state of {type(owner)!r}')
        super().load_build()

    def _replace(self, old: object, new: object) -> None:
        """Put a value in the place of one that is on top of the stack and can be in the memo."""
        self.stack[-1] = new
        for place, value in self.memo.items():
            if value is old:
                self.memo[place] = new

    def count_levels(self, made: tuple) -> None:
        """At once: as a key a tuple is hashed, and Python's hash of deep ones ends in the end of its stack.

        `levels` keeps what it has counted, so that no other tuple gets its id.
        """
        inner = [self.levels.get(id(value), (value, 1))[1] for value in made if type(value) is tuple]
        if inner:
            level = max(inner) + 1
            _expect(level <= MOST_LEVELS, f'more than {MOST_LEVELS} tuples in one another')
            self.levels[id(made)] = made, level

    def load_setitem(self) -> None:
        _expect(isinstance(self.stack[-3], dict), f'an item of {type(self.stack[-3])!r}')
        super().load_setitem()

    def load_setitems(self) -> None:
        _expect(isinstance(self.metastack[-1][-1], dict), f'items of {type(self.metastack[-1][-1])!r}')
        super().load_setitems()

    def load_append(self) -> None:
        _expect(type(self.stack[-2]) is list, f'an element of {type(self.stack[-2])!r}')
        super().load_append()

    def load_appends(self) -> None:
        _expect(type(self.metastack[-1][-1]) is list, f'elements of {type(self.metastack[-1][-1])!r}')
        super().load_appends()

    def load_other(self) -> NoReturn:
        raise Refused('an opcode that no writer of checkpoints uses')

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[opcode[0]] = _counted(dispatch[opcode[0]])
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    for opcode in (
            pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
            pickle.LONG4):  # whole numbers of more than 255 bytes, which Python refuses to print
        dispatch[opcode[0]] = load_other


def safe_pickle(sizes: Mapping[str, int] | None, file_size: int) -> SimpleNamespace:
    """The `pickle_module` of `torch.load` that reads with `SafeUnpickler`.

    Args:
        sizes: bytes of the records of a zip file, by their key. torch below 2.10 believes what the pickle says of
            them, and reads memory behind the record. None for the older format, in which storages follow the pickle.
        file_size: bytes, which no storage of the older format exceeds.
    """
    class Unpickler(SafeUnpickler):
        def load_binpersid(self) -> None:
            _check_storage(self.stack[-1], sizes, file_size)
            super().load_binpersid()

        dispatch = {**SafeUnpickler.dispatch, pickle.BINPERSID[0]: load_binpersid}

    def load(file: object, **options: object) -> object:
        return Unpickler(file, **options).load()

    return SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load, UnpicklingError=Refused)


def _check_storage(pid: tuple, sizes: Mapping[str, int] | None, file_size: int) -> None:
    """`pid` is ('storage', type, key, device, number of elements); in the older format something follows them."""
    _, kind, key, _, elements = pid[:5]
    item_size = 1 if kind is torch.UntypedStorage else kind.dtype.itemsize
    size = elements * item_size
    if sizes is None:
        _expect(0 <= size <= file_size, f'a storage of {size} bytes in a file of {file_size}')
    else:
        _expect(sizes.get(key) == size, f'{elements} elements of a record of {sizes.get(key)} bytes')


def _dtype_in_order(dtype: np.dtype, state: tuple) -> np.dtype:
    """(version, order of bytes, subarray, names, fields, item size, alignment, flags): the order is all that counts."""
    _expect(tuple(state[2:8]) == NO_DTYPE_STATE and state[1] in ('<', '>', '=', '|'), 'a state of a numpy type')
    return dtype if state[1] == '|' else dtype.newbyteorder(state[1])


def _check_structure(content: object) -> None:
    """Containers that are deep, in themselves or in one another very often end whoever copies or prints them."""
    measured: dict[int, tuple[int, int]] = {}  # by id: levels, and values as often as they stand in it

    def measure(container: object, outer: int) -> tuple[int, int]:
        if id(container) in measured:
            return measured[id(container)]

        _expect(outer < MOST_LEVELS, f'more than {MOST_LEVELS} dicts, lists and tuples in one another')
        measured[id(container)] = IN_ITSELF
        levels, values = 1, 1
        for value in _values_in(container):
            inner_levels, inner_values = (0, 1)
            if isinstance(value, CONTAINERS):
                inner_levels, inner_values = measure(value, outer + 1)
            levels, values = max(levels, inner_levels + 1), values + inner_values

        _expect(levels <= MOST_LEVELS, f'more than {MOST_LEVELS} dicts, lists and tuples in one another')
        _expect(values <= MOST_VALUES, 'a list in itself, or some millions of values out of a few')
        measured[id(container)] = levels, values
        return measured[id(container)]

    if isinstance(content, CONTAINERS):
        measure(content, 0)


def _values_in(container: object) -> Iterable:
    if isinstance(container, Mapping):
        return chain(container, container.values())
    return vars(container).values() if isinstance(container, Namespace) else container


def _check_array_state(state: tuple) -> None:
    """(version, shape, dtype, in Fortran's order, content)"""
    _, shape, dtype, _, content = state
    numbers = isinstance(dtype, np.dtype) and dtype.kind in KINDS_OF_NUMBERS
    _expect(numbers and type(content) is bytes and all(length >= 0 for length in shape), 'a state of a numpy array')
    _expect(len(content) == np.prod(shape, dtype=int) * dtype.itemsize, 'the size of a numpy array')


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(f'No writer of checkpoints makes {what}')
