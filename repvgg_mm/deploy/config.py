"""How a config describes the deploy form."""

from __future__ import annotations

from mmengine.config import Config
from torch import nn

from ..convert.foreign import replace_foreign_blocks
from ..openmmlab.config import config_dicts, copy_of
from ..openmmlab.model import replace_sync_bn, repvgg_parts
from ..registry import MODELS, ROOT_MODELS

DEPLOY_FORM = 'repvgg_mm.deploy_form'  # in the deploy.py of models with blocks of other libraries


def deploy_config(cfg: Config) -> Config:
    """The config of the deploy form: no weights to start from, no SyncBN, every RepVGG with deploy=True."""
    cfg = copy_of(cfg)
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

    imports = set(cfg.get('custom_imports', {}).get('imports', []))
    imports.add('repvgg_mm')
    cfg.custom_imports = dict(imports=sorted(imports), allow_failed_imports=False)
    return cfg


def use_training_form(cfg: Config) -> None:
    """Turn the config of a deploy form, as `deploy_config` and converting leave it, into that of the training form."""
    if cfg.model.get('type') == DEPLOY_FORM:
        cfg.model = cfg.model.model
    for part in repvgg_parts(cfg):
        part['deploy'] = False


@MODELS.register_module()
def deploy_form(model: dict, **runners_defaults: object) -> nn.Module:
    """For configs of converted models: build `model` and give its blocks of other libraries their deploy form.

    A Runner adds the config's own data_preprocessor to a model that names none.
    """
    built = ROOT_MODELS.build({**runners_defaults, **model})
    converted, _ = replace_foreign_blocks(built)
    return converted
