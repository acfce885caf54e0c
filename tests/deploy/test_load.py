"""`repvgg_mm.load`: a trained model in a program."""

from __future__ import annotations

import pytest
import torch
from helpers import image, leaves, pspnet, pspnet_config
from mmengine.config import Config

import repvgg_mm
from repvgg_mm import UserError

pytestmark = pytest.mark.stack


@pytest.fixture
def files(tmp_path):
    model = pspnet()
    meta = dict(dataset_meta=dict(classes=('disk', 'ring'), palette=[[1, 2, 3], [4, 5, 6]]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'checkpoint.pth')
    (tmp_path / 'config.py').write_text(f'model = {pspnet_config()}\ndefault_scope = "mmseg"\n')
    return model, tmp_path / 'config.py', tmp_path / 'checkpoint.pth'


@pytest.mark.parametrize('as_config', [False, True])
def test_a_model_with_its_weights_and_classes(files, as_config):
    model, config, checkpoint = files
    loaded = repvgg_mm.load(Config.fromfile(config) if as_config else config, checkpoint, 'cpu')
    assert not loaded.training and loaded.cfg.default_scope == 'mmseg'
    assert loaded.dataset_meta == dict(classes=['disk', 'ring'], palette=[[1, 2, 3], [4, 5, 6]])
    x = image(1, 3, 64, 64, dtype=torch.float32)
    (_, expected), (_, found) = leaves(model(x)), leaves(loaded(x))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_weights_of_another_model(files, tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'other.pth')
    with pytest.raises(UserError, match=r'other\.pth'):
        repvgg_mm.load(files[1], tmp_path / 'other.pth')
