"""Mixed precision for `tools/train.py --amp`, with or without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn

from ..errors import UserError
from ..openmmlab.config import kind_of

KNOWN_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper')


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Losses under torch.autocast in bfloat16, on a CPU or a GPU; parameters and their gradients stay in float32.

    bfloat16 has the range of float32, so there is no loss scaling. MMEngine's AmpOptimWrapper needs a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def use_amp(optim_wrapper: ConfigDict, dtype: str | None) -> None:
    """Change a config's `optim_wrapper` to mixed precision: 'float16' or 'bfloat16'.

    None is float16 on a GPU, as in the toolboxes' tools, and bfloat16 on a CPU.

    Raises:
        UserError: the config has another wrapper than MMEngine's, or float16 was asked for without a GPU.
    """
    gpu = torch.cuda.is_available()
    default = 'float16' if gpu else 'bfloat16'
    chosen = dtype or default

    if chosen == 'float16' and not gpu:
        raise UserError(
            'float16 needs a GPU, whose loss scaling torch has no CPU counterpart for, and none was found. '
            'Use --amp alone, which is bfloat16 on a CPU.')
    if 'type' in optim_wrapper and kind_of(optim_wrapper) not in KNOWN_WRAPPERS:
        raise UserError(
            f'--amp works with OptimWrapper, and this config has {optim_wrapper.type}. '
            'Set optim_wrapper.type in the config instead.')

    if chosen == 'bfloat16':
        optim_wrapper.type = 'BFloat16OptimWrapper'
        for option in ('loss_scale', 'dtype', 'use_fsdp'):  # of AmpOptimWrapper
            optim_wrapper.pop(option, None)
    else:
        optim_wrapper.type = 'AmpOptimWrapper'
        optim_wrapper.setdefault('loss_scale', 'dynamic')
        if dtype:
            optim_wrapper.dtype = dtype
