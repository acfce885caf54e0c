"""Combinations of packages that cannot work, each told in a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from repvgg_mm import UserError, environment
from repvgg_mm.environment import check_environment, check_torchvision, cpu_autocast_dtype, torch_at_least

GOOD = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2', 'mmdet': '3.3.0', 'setuptools': '65.5.0'}
ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmsegmentation': '1.4.2'}


@pytest.fixture
def installed(monkeypatch):
    """Lets a test say which versions are installed."""
    def pretend(versions: dict[str, str]) -> None:
        monkeypatch.setattr(environment, '_version', versions.get)
    return pretend


@pytest.mark.parametrize('versions', [GOOD, ONEDL, {}])
def test_what_works(installed, versions):
    installed(versions)
    check_environment()


def test_both_stacks_at_once(installed):
    installed(GOOD | ONEDL)
    with pytest.raises(UserError, match=r'both are installed \(mmengine and onedl-mmengine.*new environment'):
        check_environment()


@pytest.mark.parametrize('package', ['mmsegmentation', 'mmdet'])
def test_an_mmcv_that_the_toolbox_refuses(installed, package):
    installed({'mmengine': '0.10.7', 'mmcv': '2.2.0', package: GOOD[package]})
    with pytest.raises(UserError, match=rf'{package} .* takes mmcv 2.0 and 2.1, and mmcv 2.2.0.*mmcv==2.1.0'):
        check_environment()


def test_a_torch_that_is_too_old():
    program = """
import torch
torch.__version__ = '1.13.1'
import repvgg_mm
try:
    repvgg_mm.whole_model_convert
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert 'needs torch 2.1 or newer, and this is torch 1.13.1. Install a newer' in result.stdout, result.stderr


def test_a_torchvision_of_another_torch(tmp_path, monkeypatch):
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
    with pytest.raises(UserError, match=r'operator torchvision::nms does not exist.*belongs to it, or uninstall it'):
        check_torchvision()


@pytest.mark.parametrize('found, asked, holds', [
    ('2.1.2', '2.6', False), ('2.13.0+cpu', '2.6', True), ('2.6.0', '2.6', True), ('2.5.1', '2.6', False),
    ('3.0.0a0', '2.6', True), ('2.6rc1', '2.6', True), ('2.1.2', '2.1', True)])
def test_versions_are_compared_as_numbers(found, asked, holds, monkeypatch):
    monkeypatch.setattr(torch, '__version__', found)
    assert torch_at_least(asked) is holds


def test_the_type_of_autocast():
    x = torch.ones(2, 2)
    assert cpu_autocast_dtype() is None
    with torch.autocast('cpu', torch.bfloat16):
        assert cpu_autocast_dtype() == (x @ x).dtype == torch.bfloat16
