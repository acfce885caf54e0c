"""Configs find the backbone by its bare name and, without importing anything, by its scoped name."""

from __future__ import annotations

import subprocess
import sys

import mmdet.registry
import mmengine.registry
import mmseg.registry
import pytest
from helpers import TINY, pspnet_config, retinanet_config
from mmengine.registry import DefaultScope

import repvgg_mm
from repvgg_mm import RepVGG

REGISTRIES = [mmengine.registry.MODELS, mmseg.registry.MODELS, mmdet.registry.MODELS, repvgg_mm.registry.MODELS]


@pytest.mark.parametrize('name', ['RepVGG', 'repvgg_mm.RepVGG'])
@pytest.mark.parametrize('registry', REGISTRIES, ids=lambda registry: registry.scope)
def test_every_registry_builds_it(registry, name):
    assert type(registry.build(dict(type=name, arch=TINY))) is RepVGG


@pytest.mark.parametrize('name', ['RepVGG', 'repvgg_mm.RepVGG'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmdet', 'repvgg_mm'])
@pytest.mark.parametrize('registry', REGISTRIES, ids=lambda registry: registry.scope)
def test_every_default_scope_builds_it(registry, scope, name):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(registry.build(dict(type=name, arch=TINY))) is RepVGG


@pytest.mark.parametrize('name', ['RepVGG', 'repvgg_mm.RepVGG'])
@pytest.mark.parametrize('config', [pspnet_config, retinanet_config])
def test_inside_a_model(config, name):
    model = mmengine.registry.MODELS.build(config(type=name))
    assert type(model.backbone) is RepVGG


@pytest.mark.parametrize('package, name', [
    ('mmengine', 'repvgg_mm.RepVGG'), ('mmseg', 'repvgg_mm.RepVGG'), ('mmdet', 'repvgg_mm.RepVGG')])
def test_the_scoped_name_imports_the_package(package, name):
    code = (f'from {package}.registry import MODELS; import sys; assert "repvgg_mm" not in sys.modules; '
            f'model = type(MODELS.build(dict(type={name!r}, arch={TINY!r}))); print(model.__module__, model.__name__)')
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=120)
    assert (run.stdout.strip().splitlines()[-1:], run.returncode) == (['repvgg_mm.backbone RepVGG'], 0), run.stderr
