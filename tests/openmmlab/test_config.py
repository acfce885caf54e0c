"""A config of the user's is read, searched and copied; every mistake in it is a sentence."""

from __future__ import annotations

import sys

import pytest
from helpers import pspnet_config
from mmengine.config import Config
from mmengine.utils import is_installed
from tool_runs import CONFIG, ROOT, derived_config

from repvgg_mm import UserError
from repvgg_mm.openmmlab.config import (
    config_dicts,
    copy_of,
    explained,
    import_toolbox,
    kind_of,
    read_config,
    toolbox_of,
)
from repvgg_mm.openmmlab.model import build_model


def test_options_are_applied_as_the_toolboxes_do():
    path = ROOT / CONFIG
    cfg = read_config(path, {'model.backbone.arch': 'A1', 'train_cfg.max_iters': 3})
    expected = Config.fromfile(path)
    expected.merge_from_dict({'model.backbone.arch': 'A1', 'train_cfg.max_iters': 3})
    assert cfg.pretty_text == expected.pretty_text and cfg.model.backbone.arch == 'A1' and cfg.filename == str(path)


@pytest.mark.parametrize('text, message', [
    ('model = dict(', r'Python that MMEngine can merge with its bases, and .*config\.py is not \(SyntaxError'),
    ("_base_ = ['missing.py']", r'can merge with its bases, and .*config\.py is not'),
    ('a = 1 / 0', r'is not \(ZeroDivisionError: division by zero\)'),
    ('data = 1', r"describes a model, and .* has only \['data'\]\. Give a config of configs/ rather than")])
def test_a_file_that_is_no_config(tmp_path, text, message):
    (tmp_path / 'config.py').write_text(text + '\n')
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / 'config.py')


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r'missing\.py is missing\. Those of this project are in configs/'):
        read_config(tmp_path / 'missing.py')
    with pytest.raises(UserError, match=rf'{tmp_path} is a folder'):
        read_config(tmp_path)


def test_an_option_that_the_config_cannot_have():
    with pytest.raises(UserError, match=r'--cfg-options overrides settings .*does not fit it .*Compare the names'):
        read_config(ROOT / CONFIG, {'model.type.name': 4})


def test_a_copy_can_be_changed_alone(tmp_path):
    cfg = read_config(derived_config(tmp_path / 'config.py', ''))
    before = cfg.pretty_text
    copied = copy_of(cfg)
    assert copied.pretty_text == before and copied.filename == cfg.filename
    copied.model.backbone.arch = 'B3'
    copied.train_dataloader.dataset.pipeline.clear()
    copied.pop('optim_wrapper')
    assert cfg.pretty_text == before


def test_every_dict_of_a_config_is_found_once():
    found = list(config_dicts(dict(a=1, b=[dict(c=2), (dict(d=[dict(e=3)]),)])))
    assert [sorted(part) for part in found] == [['a', 'b'], ['c'], ['d'], ['e']]
    assert list(config_dicts('text')) == []
    types = [part.get('type') for part in config_dicts(Config(dict(model=pspnet_config()))._cfg_dict)]
    assert types.count('RepVGG') == 1 and types.count('CrossEntropyLoss') == 2


def test_a_toolbox_that_is_not_installed():
    import_toolbox(Config(dict(default_scope=None)))
    with pytest.raises(UserError, match=r'is for no_such_toolbox, .*Install no_such_toolbox \(docs/install\.md\)'):
        import_toolbox(Config(dict(default_scope='no_such_toolbox')))


@pytest.mark.parametrize('scope, command', [
    ('mmseg', r"pip install --no-build-isolation -e '\.\[openmmlab\]', or '\.\[onedl\]' \(docs/install\.md\)"),
    ('mmpretrain', r"'\.\[openmmlab-classification\]', .*the torchvision that belongs to your torch")])
def test_the_command_that_installs_a_known_toolbox(monkeypatch, scope, command):
    monkeypatch.setitem(sys.modules, scope, None)  # importing it raises ImportError
    with pytest.raises(UserError, match=command):
        import_toolbox(Config(dict(default_scope=scope)))


@pytest.mark.parametrize('error', [TypeError('an option'), KeyError('a part')])
def test_what_a_registry_raises_is_explained(error):
    message = rf'{type(error).__name__}: .*{error.args[0]}.*Compare it with a file'
    with pytest.raises(UserError, match=message) as raised:
        with explained():
            raise error
    assert raised.value.__cause__ is error
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError  # a fault of the code stays one


def test_a_base_of_a_toolbox_where_setuptools_is_too_new(tmp_path, monkeypatch):
    openmmlab = is_installed('mmsegmentation')
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)  # importing it raises ModuleNotFoundError
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'")
    message = r"setuptools 82 .* no longer have, .*pip install 'setuptools<81'"
    if not openmmlab:  # OneDL's MMEngine looks for the name of OpenMMLab's package
        message = 'mmsegmentation is not installed'
    with pytest.raises(UserError, match=message):
        read_config(config)


def test_a_config_in_pure_python_style_is_one_of_names():
    cfg = read_config(ROOT / 'configs/pspnet_repvgg_a0_shapes_pure_python.py', {'model.backbone.arch': 'A1'})
    assert cfg.model.type == 'mmseg.models.EncoderDecoder' and cfg.model.backbone.type == 'repvgg_mm.RepVGG'
    assert cfg.model.backbone.arch == 'A1' and toolbox_of(cfg) == 'mmseg' and kind_of(cfg.model) == 'EncoderDecoder'
    assert 'read_base' not in cfg and 'PSPHead' not in cfg
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('part, kind', [
    (dict(type='RepVGG'), 'RepVGG'), (dict(type='repvgg_mm.RepVGG'), 'RepVGG'), (dict(type=Config), 'Config'),
    ({}, '')])
def test_the_kind_of_a_part(part, kind):
    assert kind_of(part) == kind


def test_a_setting_that_is_left_of_the_backbone_before():
    cfg = Config(dict(
        default_scope='mmseg', model=dict(pspnet_config(), backbone=dict(type='RepVGG', arch='A0', depth=50))))
    with pytest.raises(UserError, match=r"keyword argument 'depth'.*backbone=dict\(_delete_=True, type='RepVGG'"):
        build_model(cfg)


@pytest.mark.parametrize('path, message', [
    ('mmseg::pspnet/a.py', r"is a name in a package\. .*_base_ = 'mmseg::pspnet/a\.py'"),
    ('work/iter_4.pth', r'iter_4\.pth holds weights\. The config comes first'),
    ('engine.onnx', r'holds weights')])
def test_what_is_no_config_by_its_name(path, message):
    with pytest.raises(UserError, match=message):
        read_config(path)
