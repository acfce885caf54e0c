"""What older versions of torch name otherwise: one function a difference, which goes when that version goes."""

from __future__ import annotations

import torch


def cpu_autocast_dtype() -> torch.dtype | None:
    """The type in which the CPU's autocast computes, if it is on; torch below 2.4 has functions of its own for it."""
    if not hasattr(torch.amp, 'is_autocast_available'):
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None


def at_least(version: str) -> bool:
    """Whether torch is of this version, such as '2.6', or newer."""
    return _numbers(torch.__version__) >= _numbers(version)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split('+')[0].split('.')[:2]]
