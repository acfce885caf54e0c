"""Blocks of other libraries that are sums of convolutions with BatchNorm, found by type name and fused alike.

Nothing is imported from those libraries: a block is known by the names of its class and its bases. Which blocks
are registered stands in `foreign_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..block import check_norm, scale_shift
from ..errors import UserError


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


READERS: dict[str, Callable[[nn.Module], Parts | None]] = {}


def fusible(*names: str) -> Callable:
    """Register a function that takes blocks of these classes ('module.Class') apart: block -> Parts.

    It returns None for a block in deploy form, which then stays as it is. It is also asked for subclasses that
    inherit the class's forward; one with its own has to be registered itself.
    """
    def register(reader: Callable[[nn.Module], Parts | None]) -> Callable[[nn.Module], Parts | None]:
        READERS.update(dict.fromkeys(names, reader))
        return reader
    return register


def named_foreign_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Parts]]:
    """Name, block and parts of every registered block in training form."""
    for name, module in model.named_modules():
        reader = _reader_of(module)
        parts = reader(module) if reader else None
        if parts is not None:
            yield name, module, parts


def replace_foreign_blocks(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Fuse every registered block in `model`; returns the model (another one if it is a block) and their names.

    Raises:
        UserError: a block cannot be fused, named; the model is then unchanged.
    """
    fused = {}
    names = []
    for name, block, parts in named_foreign_blocks(model):
        try:
            fused[block] = _fuse(parts).train(block.training)
        except UserError as error:
            raise UserError(f'{name}: {error}' if name else str(error)) from None
        names.append(name)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # a shared child under each of its names
            if child in fused:
                setattr(parent, name, fused[child])
    return fused.get(model, model), names


def unknown_switches(model: nn.Module) -> list[str]:
    """What looks fusible and is in no registry, as 'name (type)'.

    That is: innermost modules with a method `switch_to_deploy`, and subclasses of registered blocks with a forward
    of their own.
    """
    from ..backbone import RepVGG
    from ..block import RepVGGBlock

    def switches(module: nn.Module) -> bool:
        return hasattr(module, 'switch_to_deploy')

    def unknown(module: nn.Module) -> bool:
        if isinstance(module, (RepVGG, RepVGGBlock)) or _reader_of(module) is not None:
            return False
        if any(_name_of(base) in READERS for base in type(module).__mro__):
            return True
        children = [child for child in module.modules() if child is not module]
        return switches(module) and not any(switches(child) or isinstance(child, FusedBlock) for child in children)

    return [f'{name or "the model"} ({_name_of(type(module))})' for name, module in model.named_modules()
            if unknown(module)]


@torch.no_grad()
def _fuse(parts: Parts) -> FusedBlock:
    """One convolution of the largest kernel: smaller ones are placed in its centre, an identity is a 1x1."""
    convs = [branch.conv for branch in parts.branches if branch.conv is not None]
    if not convs:
        raise UserError('Fusing needs a convolution to add the other branches to, and there is none. Register the '
                        'block with one.')
    widest = max(convs, key=lambda conv: conv.kernel_size)
    for conv in convs:
        _check_geometry(conv, widest)
    dtype = torch.promote_types(widest.weight.dtype, torch.float32)
    kernel = torch.zeros_like(widest.weight, dtype=dtype)
    bias = kernel.new_zeros(widest.out_channels)
    for i, (conv, norm, factor) in enumerate(parts.branches):
        check_norm(f'the norm of branch {i}', norm)
        scale, shift = scale_shift(norm, dtype)
        if conv is None:
            conv_bias = None
            weight = _identity_kernel(widest).to(kernel)
        else:
            conv_bias, weight = conv.bias, conv.weight.to(dtype)
        low = [(k - small) // 2 for k, small in zip(kernel.shape[2:], weight.shape[2:])]
        place = kernel[:, :, low[0]:low[0] + weight.shape[2], low[1]:low[1] + weight.shape[3]]
        place += factor * weight * scale[:, None, None, None]
        bias += factor * (shift if conv_bias is None else shift + conv_bias.to(dtype) * scale)
    fused = nn.Conv2d(widest.in_channels, widest.out_channels, widest.kernel_size, widest.stride, widest.padding,
                      widest.dilation, widest.groups, padding_mode=widest.padding_mode, device='meta')
    fused.weight = nn.Parameter(kernel.to(widest.weight.dtype), requires_grad=widest.weight.requires_grad)
    fused.bias = nn.Parameter(bias.to(widest.weight.dtype), requires_grad=widest.weight.requires_grad)
    return FusedBlock(fused, parts.tail)


def _identity_kernel(conv: nn.Conv2d) -> Tensor:
    if conv.in_channels != conv.out_channels or tuple(conv.stride) != (1, 1):
        raise UserError('An identity branch needs as many output as input channels and stride 1, got '
                        f'{conv.in_channels} to {conv.out_channels} channels and stride {conv.stride}. Register the '
                        'block without that branch.')
    width = conv.in_channels // conv.groups
    return torch.eye(width).repeat(conv.groups, 1)[:, :, None, None]


def _check_geometry(conv: nn.Conv2d, widest: nn.Conv2d) -> None:
    """Both must see the same centre: odd kernels, equal stride and groups, padding that differs by the kernel alone."""
    same = (conv.in_channels, conv.out_channels, conv.groups, tuple(conv.stride))
    wanted = (widest.in_channels, widest.out_channels, widest.groups, tuple(widest.stride))
    centred = all(
        not isinstance(c.padding, str) and size % 2 == 1 and padding - dilation * (size // 2) == 0
        for c in (conv, widest) for size, padding, dilation in zip(c.kernel_size, c.padding, c.dilation))
    spread = max(conv.kernel_size) == 1 or tuple(conv.dilation) == tuple(widest.dilation)
    if same != wanted or not centred or not spread:
        raise UserError('Branches are one convolution only if they have equal channels, groups and strides and odd '
                        f'kernels centred on the same pixel, got {conv} beside {widest}. Leave this block out of the '
                        'registry.')


def _reader_of(module: nn.Module) -> Callable[[nn.Module], Parts | None] | None:
    """That of the nearest registered base, if the class computes as that base does."""
    cls = type(module)
    base = next((base for base in cls.__mro__ if _name_of(base) in READERS), None)
    return READERS[_name_of(base)] if base is not None and cls.forward is base.forward else None


def _name_of(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'
