"""A config of the user's: read, searched and copied."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..errors import UserError, first_line
from .shipped import shipped_config

OF_ANOTHER_BACKBONE = re.compile(
    "RepVGG.__init__.*unexpected keyword argument '(depth|num_stages|style|contract_dilation|embed_dims)'")
OF_WEIGHTS = ('.pth', '.pt', '.safetensors', '.onnx', '.xml')
STACK = "Install a stack: pip install --no-build-isolation -e '.[openmmlab]', or '.[onedl]'"
CLASSIFICATION = (
    "Install the extra: pip install -e '.[openmmlab-classification]', or '.[onedl-classification]', and "
    'the torchvision that belongs to your torch')
INSTALL = {'mmseg': STACK, 'mmdet': STACK, 'mmpretrain': CLASSIFICATION}


def read_config(path: str | PathLike, options: Mapping | None = None) -> Config:
    """The config in a file, with `options` applied as --cfg-options are.

    Raises:
        UserError: there is no such file or it is not a config.
    """
    if '::' in str(path):
        raise UserError(
            f'A config is a Python file, and {path} is a name in a package. Write a file with this name as its base, '
            f"_base_ = '{path}', and what you change.")
    path = Path(path)
    if path.suffix in OF_WEIGHTS:
        raise UserError(
            f'A config is a Python file, and {path} holds weights. The config comes first on the command line, then '
            'the checkpoint.')
    if not path.exists():
        path = shipped_config(path) or path
    if not path.is_file():
        found = 'a folder' if path.is_dir() else 'missing'
        raise UserError(
            f'A config is a Python file, and {path} is {found}. Those of this project are in configs/.')

    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if error.name != 'pkg_resources':
            raise _no_config(path, error) from None
        raise UserError(
            f"MMEngine finds a base such as 'mmseg::...' with pkg_resources, which setuptools 82 and newer no longer "
            f"have, and {path} has such a base. Install an older one: pip install 'setuptools<81'.") from None
    except Exception as error:  # a config is a program of the user's
        raise _no_config(path, error) from None

    cfg = copy_of(cfg)
    if options is not None:
        try:
            cfg.merge_from_dict(options)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f'--cfg-options overrides settings that {path} can have, and {options} does not '
                f'fit it ({type(error).__name__}: {error}). Compare the names with the config.') from None

    if 'model' not in cfg:
        raise UserError(
            f'A config describes a model, and {path} has only {sorted(cfg)[:8]}. '
            'Give a config of configs/ rather than one of configs/_base_/.')
    return cfg


def toolbox_of(cfg: Config) -> str:
    """'mmseg', 'mmdet', ...: the default_scope of a config, or the module of its model in pure Python style."""
    scope = cfg.get('default_scope')
    if scope:
        return scope
    module = str(cfg.get('model', {}).get('type')).partition('.')[0]
    return module if module in INSTALL else 'mmengine'


def _no_config(path: Path, error: Exception) -> UserError:
    return UserError(
        f'A config is Python that MMEngine can merge with its bases, and {path} is not '
        f'({type(error).__name__}: {error}). Compare it with a file in configs/.')


def import_toolbox(cfg: Config) -> None:
    """Import the toolbox that a config is for, or raise UserError with the command that installs it."""
    scope = toolbox_of(cfg)
    try:
        importlib.import_module(scope)
        if scope != 'mmengine':
            importlib.import_module(f'{scope}.models')
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        command = INSTALL.get(scope, f'Install {scope}')
        raise UserError(
            f'This config is for {scope}, which cannot be imported ({error}). '
            f'{command} (docs/install.md).') from None


def copy_of(cfg: Config) -> Config:
    """A config that can be changed without changing `cfg`.

    Of a config in pure Python style the classes become their names, such as 'mmseg.models.PSPHead', and what it
    imported is left out.
    """
    return Config(cfg.to_dict(), filename=cfg.filename)


def kind_of(part: Mapping) -> str:
    """The last word of the type of a part: 'PSPHead', whether the config names it so or by its module."""
    kind = part.get('type', '')
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition('.')[2]


def config_dicts(part: object) -> Iterator[ConfigDict]:
    """Every dict inside a part of a config, itself included."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from config_dicts(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from config_dicts(value)


@contextmanager
def explained() -> Iterator[None]:
    """What a registry raises for a wrong name or option, as a UserError."""
    try:
        yield
    except (TypeError, KeyError) as error:
        if OF_ANOTHER_BACKBONE.search(str(error)):
            raise UserError(
                'A config inherits what it does not replace, and its RepVGG has a setting of another backbone '
                f"({first_line(error)}). Replace the whole of it: backbone=dict(_delete_=True, type='RepVGG', ...).",
            ) from error
        raise UserError(
            'A config describes parts and options that its toolbox has, and this one does not '
            f'({first_line(error)}). Compare it with a file in configs/.') from error
