"""Packages that an engine is made or run with: imported where they are called, since most of them are optional."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import UserError

EXTRA = "Install the extra in the repository: pip install -e '.[export]'"


def optional(module: str, install: str = EXTRA) -> ModuleType:
    """Import `module`, by default one of the extra `export`, or raise UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'Exporting and running engines needs {module}, which cannot be imported ({error}). {install}.') from None
