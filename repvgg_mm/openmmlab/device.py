"""The device that a user names."""

from __future__ import annotations

import torch

from ..errors import UserError, reason


def usable_device(name: str | None) -> torch.device:
    """The device of that name, a GPU by default if there is one; UserError if torch cannot use it here."""
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name or default)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f'A device is one that torch can use here, and {name} is not ({reason(error)[:120]}). '
            'Use --device cpu.') from None
