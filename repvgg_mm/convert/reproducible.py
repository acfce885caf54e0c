"""Running a model so that nothing but its weights decides the outcome."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FLOAT32 = torch.empty(0, dtype=torch.float32)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def running_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside this context random numbers start from one seed, and in float64 a model's own constants have it too.

    Many heads make their position encodings and grids in float32 whatever the model's dtype is, and mmcv's
    non-maximum suppression knows no other, so it is given that. Everything is as before afterwards, the generator of
    the CPU and the default dtype included.
    """
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if dtype != torch.float64:
            yield
            return

        torch.set_default_dtype(dtype)
        try:
            with _Float64ForFloat32(), _nms_in_float32():
                yield
        finally:
            torch.set_default_dtype(default)


class _Float64ForFloat32(TorchFunctionMode):
    """Whoever asks for float32 gets float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args = tuple(_double(arg) for arg in args)
        kwargs = {name: _double(arg) for name, arg in (kwargs or {}).items()}
        if function is Tensor.float:
            function = Tensor.double
        return function(*args, **kwargs)


@contextmanager
def _nms_in_float32() -> Iterator[None]:
    mmcv_nms = sys.modules.get('mmcv.ops.nms')
    if mmcv_nms is None:
        yield
        return

    compiled = mmcv_nms.ext_module
    mmcv_nms.ext_module = _InFloat32(compiled)
    try:
        yield
    finally:
        mmcv_nms.ext_module = compiled


class _InFloat32:
    """A compiled module whose functions are given float32 for float64."""

    def __init__(self, compiled: ModuleType) -> None:
        self.compiled = compiled

    def __getattr__(self, name: str) -> Callable:
        function = getattr(self.compiled, name)

        def call(*args: object, **kwargs: object) -> object:
            return function(*map(_single, args), **{key: _single(arg) for key, arg in kwargs.items()})
        return call


def _single(argument: object) -> object:
    if isinstance(argument, Tensor) and argument.dtype == torch.float64:
        return argument.type_as(FLOAT32.to(argument.device))  # in words that mean float32 here, too
    return argument


def _double(argument: object) -> object:
    return torch.float64 if argument is torch.float32 else argument
