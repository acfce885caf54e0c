"""Configs that come with the package, from wherever the user is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_runs import ROOT

from repvgg_mm import UserError
from repvgg_mm.openmmlab.config import read_config
from repvgg_mm.openmmlab.shipped import shipped_config


@pytest.mark.parametrize('name', ['pspnet_repvgg_b2.py', 'configs/pspnet_repvgg_b2.py'])
def test_a_config_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config(name).model.backbone == read_config(ROOT / 'configs/pspnet_repvgg_b2.py').model.backbone


def test_a_file_of_the_users_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('pspnet_repvgg_b2.py').write_text("model = dict(type='Mine')")
    assert read_config('pspnet_repvgg_b2.py').model.type == 'Mine'


@pytest.mark.parametrize('name', ['absent.py', 'other/pspnet_repvgg_b2.py'])
def test_nothing_else_is_found(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_config(Path(name)) is None
    with pytest.raises(UserError, match='is missing'):
        read_config(name)


def test_a_base_is_named_by_package(tmp_path):
    base = "_base_ = 'repvgg_mm::repvgg/pspnet_repvgg_b2.py'"
    (tmp_path / 'mine.py').write_text(f"{base}\nmodel = dict(backbone=dict(arch='A0'))")
    found, expected = read_config(tmp_path / 'mine.py'), read_config(ROOT / 'configs/pspnet_repvgg_b2.py')
    assert found.model.backbone.pop('arch') == 'A0' and expected.model.backbone.pop('arch') == 'B2'
    assert found.to_dict() == expected.to_dict()


def test_a_base_that_is_none_of_them(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'repvgg_mm::repvgg/absent.py'")
    with pytest.raises(UserError, match=r'absent\.py is none of the configs in'):
        read_config(tmp_path / 'mine.py')
