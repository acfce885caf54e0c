"""Which blocks are in a model: this package's and those of other libraries, in either form."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..block import RepVGGBlock, named_blocks
from .foreign import Branch, FusedBlock, full_name, named_foreign_blocks, reader_of, registered_base


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Every RepVGGBlock in either form, and every fused block of another library."""
    return [module for module in model.modules() if isinstance(module, (RepVGGBlock, FusedBlock))]


def has_branches(model: nn.Module) -> bool:
    """Whether `model` contains a block in training form."""
    return any(True for _ in named_branches(model))


def fusible_or_fused(model: nn.Module) -> bool:
    """Whether `model` contains a block that converting fuses or has fused."""
    return bool(blocks_of(model)) or has_branches(model)


def named_branches(model: nn.Module) -> Iterator[tuple[str, list[Branch]]]:
    """Name and branches of every block in training form."""
    for name, block in named_blocks(model):
        if not block.deploy:
            branches = [Branch(*block.branch_3x3), Branch(*block.branch_1x1)]
            if block.branch_norm is not None:
                branches.append(Branch(None, block.branch_norm))
            yield name, branches

    for name, _, parts in named_foreign_blocks(model):
        yield name, parts.branches


def unknown_switches(model: nn.Module) -> list[str]:
    """What looks fusible and is in no registry, as 'name (type)'.

    That is: innermost modules with a method `switch_to_deploy`, and subclasses of registered blocks with a forward
    of their own.
    """
    unknown = []
    for name, module in model.named_modules():
        if _is_unknown(module):
            unknown.append(f'{name or "the model"} ({full_name(type(module))})')
    return unknown


def _is_unknown(module: nn.Module) -> bool:
    if isinstance(module, RepVGGBlock) or reader_of(module) is not None:
        return False
    if registered_base(module) is not None:
        return True  # its own forward: `reader_of` has no answer
    if not _switches(module):
        return False

    inside = [child for child in module.modules() if child is not module]
    return not any(_switches(child) or isinstance(child, FusedBlock) for child in inside)


def _switches(module: nn.Module) -> bool:
    return hasattr(module, 'switch_to_deploy')
