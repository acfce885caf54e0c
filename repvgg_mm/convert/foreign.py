"""Blocks of other libraries that are sums of convolutions with BatchNorm, found by type name and fused alike.

Nothing is imported from those libraries: a block is known by the names of its class and its bases. Which blocks
are registered stands in `foreign_blocks`; of the others some can fuse themselves, see `own_methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..block import check_norm, fused_conv, scale_shift
from ..errors import UserError
from ..fusion import LinearBranch, fuse_sum
from .own_methods import fused_by_own_methods, replace_modules


class Branch(NamedTuple):
    """factor * norm(conv(x)), or factor * norm(x) where `conv` is None."""

    conv: nn.Conv2d | None
    norm: _BatchNorm
    factor: float | Tensor = 1.0


class Parts(NamedTuple):
    """tail(sum of branches): `tail` holds modules by name, called one after the other."""

    branches: list[Branch]
    tail: dict[str, nn.Module]


class FusedBlock(nn.Module):
    """tail(conv(x)): the deploy form of a block of another library."""

    def __init__(self, conv: nn.Conv2d, tail: dict[str, nn.Module]) -> None:
        super().__init__()
        self.branch_reparam = conv
        self._tail = tuple(tail)
        for name, module in tail.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch_reparam(x)
        for name in self._tail:
            x = getattr(self, name)(x)
        return x


Reader = Callable[[nn.Module], Parts | None]
READERS: dict[str, Reader] = {}


def fusible(*names: str) -> Callable[[Reader], Reader]:
    """Register a function that takes blocks of these classes ('module.Class') apart: block -> Parts.

    It returns None for a block in deploy form, which then stays as it is. It is also asked for subclasses that
    inherit the class's forward; one with its own has to be registered itself.
    """
    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, reader))
        return reader
    return register


def named_foreign_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Parts]]:
    """Name, block and parts of every registered block in training form, of those inside another the outer one."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        reader = reader_of(module)
        parts = reader(module) if reader and module not in inside else None
        if parts is not None:
            inside.update(module.modules())
            yield name, module, parts


def replace_foreign_blocks(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Fuse every registered block in `model`, and every other that can do it itself (see `own_methods`).

    Returns the model (another one if it is a block) and the names of the blocks.

    Raises:
        UserError: a registered block cannot be fused, named; the model is then unchanged.
    """
    fused = {}
    names = []
    for name, block, parts in named_foreign_blocks(model):
        try:
            fused[block] = fuse_parts(parts).train(block.training)
        except UserError as error:
            raise UserError(f'{name}: {error}' if name else str(error)) from None
        names.append(name)

    others, named = fused_by_own_methods(model, fused)
    fused |= others
    names += named

    replace_modules(model, fused)
    return fused.get(model, model), names


@torch.no_grad()
def fuse_parts(parts: Parts) -> FusedBlock:
    """One convolution of the largest kernel, by `fuse_sum`, with the tail behind it.

    Raises:
        UserError: the branches are not one convolution, or a norm has no usable running statistics.
    """
    convs = [branch.conv for branch in parts.branches if branch.conv is not None]
    if not convs:
        raise UserError(
            'Fusing needs a convolution to add the other branches to, and there is none. '
            'Register the block with one.')

    widest = max(convs, key=lambda conv: conv.kernel_size)
    for conv in convs:
        _check_geometry(conv, widest)

    dtype = torch.promote_types(widest.weight.dtype, torch.float32)
    linear = []
    for i, branch in enumerate(parts.branches):
        check_norm(f'the norm of branch {i}', branch.norm)
        if branch.conv is None:
            _check_identity(widest)
        linear.append(_linear(branch, dtype))

    kernel, bias = fuse_sum(linear, widest.kernel_size, widest.groups)
    norm = next(branch.norm for branch in parts.branches if branch.conv is widest)
    stored = widest.weight.dtype
    return FusedBlock(fused_conv(widest, norm, kernel.to(stored), bias.to(stored)), parts.tail)


def reader_of(module: nn.Module) -> Reader | None:
    """That of the nearest registered base, if the class computes as that base does."""
    base = registered_base(module)
    if base is None or type(module).forward is not base.forward:
        return None
    return READERS[full_name(base)]


def registered_base(module: nn.Module) -> type | None:
    """The nearest class of a module, its own first, that is registered."""
    for base in type(module).__mro__:
        if full_name(base) in READERS:
            return base
    return None


def full_name(cls: type) -> str:
    """Module and class, as `fusible` takes it."""
    return f'{cls.__module__}.{cls.__qualname__}'


def _linear(branch: Branch, dtype: torch.dtype) -> LinearBranch:
    """The tensors of a branch, in `dtype`."""
    norm = scale_shift(branch.norm, dtype)
    if branch.conv is None:
        return LinearBranch(None, norm, factor=branch.factor)

    bias = branch.conv.bias
    if bias is not None:
        bias = bias.to(dtype)
    return LinearBranch(branch.conv.weight.to(dtype), norm, bias, branch.factor)


def _check_identity(conv: nn.Conv2d) -> None:
    if conv.in_channels != conv.out_channels or tuple(conv.stride) != (1, 1):
        raise UserError(
            'An identity branch needs as many output as input channels and stride 1, got '
            f'{conv.in_channels} to {conv.out_channels} channels and stride {conv.stride}. Register the '
            'block without that branch.')


def _check_geometry(conv: nn.Conv2d, widest: nn.Conv2d) -> None:
    """Both must see the same centre: odd kernels, equal stride and groups, padding that differs by the kernel alone."""
    equal = all(
        getattr(conv, name) == getattr(widest, name) for name in ('in_channels', 'out_channels', 'groups', 'stride'))
    spread = max(conv.kernel_size) == 1 or tuple(conv.dilation) == tuple(widest.dilation)
    if not equal or not spread or not _is_centred(conv) or not _is_centred(widest):
        raise UserError(
            'Branches are one convolution only if they have equal channels, groups and strides and odd '
            f'kernels centred on the same pixel, got {conv} beside {widest}. Leave this block out of the '
            'registry.')


def _is_centred(conv: nn.Conv2d) -> bool:
    """Whether an output position reads the same distance to each side."""
    if isinstance(conv.padding, str):
        return False
    for size, padding, dilation in zip(conv.kernel_size, conv.padding, conv.dilation):
        if size % 2 == 0 or padding != dilation * (size // 2):
            return False
    return True
