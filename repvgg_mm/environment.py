"""What is installed beside this package, and one sentence for each combination that does not work.

pip is not asked to mend an environment: a floor in the package's requirements would replace a torch for which mmcv was
compiled. So it is looked at here, before anything fails in a place that does not say why.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch

OLDEST_TORCH = '2.1'
INSTALL = "pip install --no-build-isolation -e '.[openmmlab]' or '.[onedl]' in a clone (docs/install.md)"
STACKS = {  # the same import names, so one of them only
    'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmsegmentation': 'onedl-mmsegmentation',
    'mmdet': 'onedl-mmdetection',
}
REFUSE_MMCV_2_2 = {'mmsegmentation': '1.2.2', 'mmdet': '3.3.0'}


@cache
def torch_missing() -> str:
    """Why torch cannot be used, or nothing."""
    try:
        import torch
    except ImportError as error:
        return (
            f'repvgg_mm converts models of torch, and torch cannot be imported ({error}). '
            'Install it: pip install torch (docs/install.md).')

    if not torch_at_least(OLDEST_TORCH):
        return (
            f'repvgg_mm needs torch {OLDEST_TORCH} or newer, and this is torch {torch.__version__}. Install a newer '
            'torch and an mmcv that was compiled for it, or use an environment of its own (docs/install.md).')
    return ''


@cache
def openmmlab_missing() -> str:
    """Why MMEngine and mmcv cannot be used, or nothing."""
    try:
        import mmcv  # noqa: F401
        import mmengine  # noqa: F401
    except ImportError as error:
        return (
            f'repvgg_mm needs mmengine and mmcv, and {error.name} cannot be imported ({error}). '
            f'Install one stack, not both: {INSTALL}.')
    return ''


def check_environment() -> None:
    """Raise UserError for a combination of installed packages that cannot work."""
    wrong = torch_missing() or openmmlab_missing() or wrong_combination()
    if wrong:
        raise UserError(wrong)


def check_torchvision() -> None:
    """Raise UserError if torchvision is installed and does not load beside this torch; MMEngine's Runner imports it."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f'torchvision is built for one version of torch, and {_version("torchvision")} does not load beside torch '
            f'{_version("torch")} ({error}). Install the one that belongs to it, or uninstall it: most models of '
            'mmsegmentation and mmdetection do without.') from None


def wrong_combination() -> str:
    """What is wrong with the versions of the toolboxes that are installed, or nothing."""
    both = [f'{ours} and {theirs}' for ours, theirs in STACKS.items() if _version(ours) and _version(theirs)]
    if both:
        return (
            f'The OpenMMLab packages and their OneDL builds share their import names, and both are installed ({both[0]}'
            '). Make a new environment with one of them (docs/install.md); uninstalling one breaks the other.')

    mmcv = _version('mmcv')
    for package, refusing in REFUSE_MMCV_2_2.items():
        if mmcv and _version(package) == refusing and _numbers(mmcv) >= [2, 2]:
            return (
                f'{package} {refusing} takes mmcv 2.0 and 2.1, and mmcv {mmcv} is installed. '
                'Install the one it takes: pip install --no-build-isolation mmcv==2.1.0 (docs/install.md).')
    return ''


def torch_at_least(oldest: str) -> bool:
    """Whether torch is of this version, such as '2.6', or newer."""
    import torch
    return _numbers(torch.__version__) >= _numbers(oldest)


def cpu_autocast_dtype() -> torch.dtype | None:
    """The type in which the CPU's autocast computes, if it is on; torch below 2.4 has functions of its own for it."""
    import torch
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is tracing what runs; torch below 2.3 has another name for it."""
    import torch
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether torch's `fully_shard` was called on it, so that its parameters are whole only while it runs."""
    fsdp = sys.modules.get('torch.distributed.fsdp')  # not loaded, not called
    return hasattr(fsdp, 'FSDPModule') and isinstance(module, fsdp.FSDPModule)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> list[int]:
    """[2, 13] of '2.13.0+cpu'."""
    return [int(part) for part in re.findall(r'\d+', text)[:2]]
