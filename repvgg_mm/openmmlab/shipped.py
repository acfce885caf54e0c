"""The configs that come with this package: found by their name wherever the user is, and named as bases."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, utils

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / '.mim' / 'configs' / 'repvgg', PACKAGE.parent / 'configs')  # of a wheel, of a clone
PREFIX = 'repvgg_mm::repvgg/'
TOOLBOXES = ('mmseg', 'mmdet', 'mmpretrain')


def shipped_config(path: Path) -> Path | None:
    """The file of this package that `NAME.py` or `configs/NAME.py` means, if it has one."""
    if path.parent.as_posix() not in ('.', 'configs'):
        return None
    for folder in FOLDERS:
        if (folder / path.name).is_file():
            return folder / path.name
    return None


def let_bases_be_named() -> None:
    """Let a config of the user's say `_base_ = 'repvgg_mm::repvgg/NAME.py'`, which MMEngine knows of its own packages.

    MMEngine would take `repvgg_mm` for the scope of everything in the base; here the base's own default_scope counts.
    """
    utils.MODULE2PACKAGE.setdefault('repvgg_mm', 'repvgg_mm')
    path_of_mmengine = Config._get_cfg_path
    if hasattr(path_of_mmengine, 'knows_repvgg'):
        return

    def path_of_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(PREFIX):
            return path_of_mmengine(cfg_path, filename)
        for folder in FOLDERS:
            if (folder / cfg_path[len(PREFIX):]).is_file():
                return str(folder / cfg_path[len(PREFIX):]), None
        raise FileNotFoundError(f'{cfg_path} is none of the configs in {FOLDERS[0]} or {FOLDERS[1]}')

    path_of_base.knows_repvgg = True
    Config._get_cfg_path = staticmethod(path_of_base)


def let_the_hub_build() -> None:
    """Let `mmengine.hub.get_model` build the configs' models: it asks a package's `utils` for the function below."""
    sys.modules.setdefault('repvgg_mm.utils', sys.modules[__name__])


def register_all_modules() -> None:
    """Register what the installed toolboxes have; a model's `_scope_` says which of them it is built from."""
    for toolbox in TOOLBOXES:
        if find_spec(toolbox):
            import_module(f'{toolbox}.utils').register_all_modules(init_default_scope=False)
