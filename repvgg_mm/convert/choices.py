"""The discrete choices of one model imposed on another, so that rounding cannot send the two different ways.

A detector ranks boxes, thins them out and compares values with thresholds: where two values are nearly equal, an error
of 1e-7 before a choice becomes another box after it. Between the choices everything is continuous, so two models that
make the same ones can be compared to the last digit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RANKING = ('topk', 'sort', 'max', 'min')  # give values and their indices along a dimension
Choice = tuple[Callable, Tensor]


class RecordedChoices(TorchDispatchMode):
    """Inside this context every operation that gives integers or truth values is kept in `made`, with what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Choice] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        choice = _choice_in(function, result)
        if choice is not None:
            self.made.append((function, choice.clone()))
        return result


class ImposedChoices(TorchDispatchMode):
    """Inside this context operations give what the same ones gave when they were recorded, in the same order.

    Values that were ranked are those of this model, in the recorded order. From the first operation that is
    another than the recorded one the model makes its own choices, and `followed` is False.
    """

    def __init__(self, made: Iterable[Choice]) -> None:
        super().__init__()
        self.left = deque(made)
        self.followed = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        own = _choice_in(function, result)
        if own is None or not self.followed:
            return result

        recorded, choice = self.left.popleft() if self.left else (None, None)
        if recorded is not function or choice.dtype != own.dtype:
            self.followed = False
            return result

        if not isinstance(result, Tensor) and choice.shape != own.shape:
            self.followed = False
            return result

        choice = choice.to(own.device, copy=True)
        if isinstance(result, Tensor):
            return choice
        return _ranked(args[0], choice, _dim_of(function, args, kwargs)), choice


def _choice_in(function: Callable, result: object) -> Tensor | None:
    """The integers or truth values that an operation gave.

    None if it gave others, or a view of what it was given, or was given nothing: a buffer of bytes is no choice.
    """
    schema = function._schema
    is_view = any(given.alias_info is not None for given in schema.returns)
    if is_view or not any('Tensor' in str(taken.type) for taken in schema.arguments):
        return None
    if isinstance(result, Tensor):
        return result if _is_discrete(result) else None

    name = schema.name.removeprefix('aten::')
    if name in RANKING and isinstance(result, tuple) and len(result) == 2:
        return result[1]
    return None


def _is_discrete(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _ranked(source: Tensor, choice: Tensor, dim: int) -> Tensor:
    """The values of `source` at the indices `choice`, as an operation of RANKING gives them."""
    if source.dim() == 0:
        return source.clone()
    if choice.dim() < source.dim():
        return source.gather(dim, choice.unsqueeze(dim)).squeeze(dim)
    return source.gather(dim, choice)


def _dim_of(function: Callable, args: tuple, kwargs: dict) -> int:
    """The argument `dim` of a call."""
    names = [argument.name for argument in function._schema.arguments]
    place = names.index('dim')
    if place < len(args):
        return args[place]
    return kwargs.get('dim', function._schema.arguments[place].default_value)
