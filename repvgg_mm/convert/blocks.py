"""Which blocks are in a model: this package's and those of other libraries, in either form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..block import RepVGGBlock, named_blocks
from .foreign import Branch, FusedBlock, full_name, named_foreign_blocks, reader_of, registered_base
from .own_methods import is_fused_by_own_method, method_of


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Every RepVGGBlock in either form, and every fused block of another library."""
    return [module for module in model.modules() if isinstance(module, RepVGGBlock) or is_fused_foreign(module)]


def is_fused_foreign(module: nn.Module) -> bool:
    """Whether a module is what converting has made of a block of another library."""
    return isinstance(module, FusedBlock) or is_fused_by_own_method(module)


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
    """What looks fusible and was not fused, as 'name (type)'.

    That is: innermost modules with BatchNorms and a method that promises to fuse them, and subclasses of registered
    blocks with a forward of their own.
    """
    unknown = []
    for name, module in model.named_modules():
        if _is_unknown(module):
            unknown.append(f'{name or "the model"} ({full_name(type(module))})')
    return unknown


def norms_left(model: nn.Module) -> dict[str, int]:
    """How many BatchNorms are left beside fused blocks of other libraries, by the type of what holds them.

    In the outermost parts of `model` with such blocks; heads of other parts keep theirs as a matter of course.
    """
    counts: Counter[str] = Counter()
    for part in _parts_of(model):
        if not any(is_fused_foreign(module) for module in part.modules()):
            continue
        for parent in part.modules():
            norms = [child for child in parent.children() if isinstance(child, _BatchNorm)]
            if norms:
                counts[full_name(type(parent))] += len(norms)
    return dict(counts)


def _parts_of(model: nn.Module) -> list[nn.Module]:
    """Backbone, neck and heads of a model of OpenMMLab, else the model itself."""
    return list(model.children()) if hasattr(model, 'backbone') else [model]


def _is_unknown(module: nn.Module) -> bool:
    if isinstance(module, RepVGGBlock) or is_fused_by_own_method(module) or reader_of(module) is not None:
        return False
    if registered_base(module) is not None:
        return True  # its own forward: `reader_of` has no answer
    if not _promises_more(module):
        return False

    inside = [child for child in module.modules() if child is not module]
    return not any(_promises_more(child) or is_fused_foreign(child) for child in inside)


def _promises_more(module: nn.Module) -> bool:
    """Whether a module has a method that fuses it: `switch_to_deploy` means nothing else, others need a BatchNorm."""
    if hasattr(module, 'switch_to_deploy'):
        return True
    return method_of(module) is not None and any(isinstance(part, _BatchNorm) for part in module.modules())
