"""Where configs find RepVGG: `type='repvgg_mm.RepVGG'` anywhere, `type='RepVGG'` once the package is imported."""

from __future__ import annotations

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

# The scope lets mmengine import the package by itself when a config names it.
LOCATIONS = ['repvgg_mm.backbone', 'repvgg_mm.deploy.config']
MODELS = Registry('model', parent=ROOT_MODELS, scope='repvgg_mm', locations=LOCATIONS)


def register(module: type) -> type:
    """Register a model class under this package's scope and under its bare name for every toolbox."""
    ROOT_MODELS.register_module(module=module)
    return MODELS.register_module(module=module)
