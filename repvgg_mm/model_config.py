"""What a config says of its model: how it is built, and how its two forms are described."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from .backbone import RepVGG
from .errors import UserError, first_line

REPVGG_TYPES = ('RepVGG', 'repvgg_mm.RepVGG', 'repvgg_mm.backbone.RepVGG', RepVGG)  # names, or the class itself


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as a Runner builds it, without its data and without its initial weights.

    Raises:
        UserError: the config names a part or an option that there is not.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with explained():
        return MODELS.build(cfg.model)


def deploy_config(cfg: Config) -> Config:
    """The config of the deploy form: no weights to start from, no SyncBN, every RepVGG with deploy=True."""
    cfg = Config(cfg._cfg_dict.to_dict())
    for part in config_dicts(cfg._cfg_dict):
        part.pop('init_cfg', None)
        part.pop('pretrained', None)
        if str(part.get('type')).endswith('TIMMBackbone'):
            part['pretrained'] = False  # its default is to download
    for part in repvgg_parts(cfg):
        part['deploy'] = True
    replace_sync_bn(cfg)
    cfg.pop('weights', None)
    cfg.load_from = None
    cfg.resume = False
    imports = set(cfg.get('custom_imports', {}).get('imports', [])) | {'repvgg_mm'}
    cfg.custom_imports = dict(imports=sorted(imports), allow_failed_imports=False)
    return cfg


def use_training_form(cfg: Config) -> None:
    """Turn the config of a deploy form, as `deploy_config` and converting leave it, into that of the training form."""
    if cfg.model.get('type') == 'repvgg_mm.deploy_form':
        cfg.model = cfg.model.model
    for part in repvgg_parts(cfg):
        part['deploy'] = False


def replace_sync_bn(cfg: Config) -> None:
    """Turn every norm of type SyncBN in the config into BN, which has the same weights."""
    for part in config_dicts(cfg._cfg_dict):
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'


def repvgg_parts(cfg: Config) -> Iterator[ConfigDict]:
    """The settings of every RepVGG in a config."""
    return (part for part in config_dicts(cfg._cfg_dict) if part.get('type') in REPVGG_TYPES)


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
        raise UserError('A config describes parts and options that its toolbox has, and this one does not '
                        f'({first_line(error)}). Compare it with a file in configs/.') from error
