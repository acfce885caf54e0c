"""Blocks of other libraries that nobody registered and that have a method of their own which fuses them.

Such a method is not believed: on a copy of the block with random statistics, in float64, its outcome must compute what
the block computes. Then it is called on another copy, in float64 too; the block itself is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..block import RepVGGBlock
from ..stages import Stages
from .reproducible import running_in

METHODS = ('fuse', 'reparameterize', 'switch_to_deploy', 'fuse_convs', 'fuse_conv_bn', 'convert_to_deploy')
OWN = '_fused_by_own_method'  # set on what such a method has made
TOLERANCE = 1e-9              # relative, in float64
SIDE = 14                     # of the images on which a block is tried
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def fused_by_own_methods(
    model: nn.Module, registered: Collection[nn.Module]
) -> tuple[dict[nn.Module, nn.Module], list[str]]:
    """What takes the place of each block that its own method fuses, and the blocks' names.

    From the outside in: a block whose method is not right is left alone and those inside it are tried. Blocks with a
    registered one inside, and the model itself, are left to those inside.
    """
    fused: dict[nn.Module, nn.Module] = {}
    names: list[str] = []
    skipped = {module for block in registered for module in block.modules()}

    for name, module in model.named_modules():
        if module in skipped or not name:
            continue
        if isinstance(module, (RepVGGBlock, Stages)):
            skipped.update(module.modules())
        elif method_of(module) and not any(inner in registered for inner in module.modules()):
            result = _fused_alone(module)
            if result is not None:
                setattr(result, OWN, True)
                fused[module] = result
                names.append(name)
                skipped.update(module.modules())
    return fused, names


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules into the places of those inside `model`; a shared one is replaced under each of its names."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])


def method_of(module: nn.Module) -> str | None:
    """The name of a block's method that promises to fuse it."""
    return next((name for name in METHODS if callable(getattr(module, name, None))), None)


def is_fused_by_own_method(module: nn.Module) -> bool:
    return getattr(module, OWN, False)


def _fused_alone(block: nn.Module) -> nn.Module | None:
    """A fused copy of `block`, with what its method leaves inside fused too; None if its method cannot be believed."""
    tried = copy.deepcopy(block).double().eval()
    _randomise(tried)
    try:
        with torch.no_grad(), running_in(torch.float64):
            before = copy.deepcopy(tried)
            after = _call(tried)
            if _size(after) >= _size(before) or not _compute_the_same(before, after):
                return None
            result = _call(copy.deepcopy(block).double().eval())
        result.to(next(block.parameters()).dtype)
    except Exception:  # whatever another library raises
        return None

    inner, _ = fused_by_own_methods(result, ())
    replace_modules(result, inner)
    return result.train(block.training)


def _call(block: nn.Module) -> nn.Module:
    """The outcome of its method: what it returns, or the block that it has changed."""
    result = getattr(block, method_of(block))()
    return result if isinstance(result, nn.Module) else block


def _size(block: nn.Module) -> int:
    """Convolutions, products and norms in it: fusing makes these fewer."""
    return sum(isinstance(module, (*CONVOLUTIONS, _BatchNorm)) for module in block.modules())


def _compute_the_same(before: nn.Module, after: nn.Module) -> bool:
    """Whether both give the same for the first kind of input that the block takes."""
    for x in _inputs_for(before):
        try:
            expected = before(x)
        except Exception:  # another kind of input
            continue
        actual = after(x)
        if not isinstance(expected, Tensor) or expected.shape != actual.shape:
            return False
        error = (actual - expected).abs().max()
        return bool(expected.isfinite().all()) and bool(error <= TOLERANCE * expected.abs().max())
    return False


def _inputs_for(block: nn.Module) -> Iterator[Tensor]:
    """Images, sequences and rows with the channels of the first layer."""
    for module in block.modules():
        channels = getattr(module, 'in_channels', None) or getattr(module, 'in_features', None)
        if isinstance(module, _BatchNorm):
            channels = module.num_features
        if isinstance(module, (*CONVOLUTIONS, _BatchNorm)):
            break
    else:
        return

    for shape in ((2, channels, SIDE, SIDE), (2, channels, SIDE), (2, SIDE, channels), (4, channels)):
        yield torch.randn(shape, dtype=torch.float64)


def _randomise(block: nn.Module) -> None:
    """Statistics, weight and bias of every BatchNorm away from those of a new one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in block.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                norm.running_mean.normal_(generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                if norm.weight is not None:
                    norm.weight.uniform_(0.5, 2, generator=generator)
                    norm.bias.normal_(generator=generator)
