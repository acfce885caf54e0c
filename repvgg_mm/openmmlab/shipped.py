"""The configs that come with this package: found by their name wherever the user is, and named as bases."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import utils

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / '.mim' / 'configs' / 'repvgg', PACKAGE.parent / 'configs')  # of a wheel, of a clone


def shipped_config(path: Path) -> Path | None:
    """The file of this package that `NAME.py` or `configs/NAME.py` means, if it has one."""
    if path.parent.as_posix() not in ('.', 'configs'):
        return None
    for folder in FOLDERS:
        if (folder / path.name).is_file():
            return folder / path.name
    return None


def let_bases_be_named() -> None:
    """Let a config of the user's say `_base_ = 'repvgg_mm::repvgg/NAME.py'`: MMEngine has a list of who may."""
    utils.MODULE2PACKAGE.setdefault('repvgg_mm', 'repvgg_mm')
