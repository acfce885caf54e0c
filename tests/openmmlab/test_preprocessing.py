"""What is read from a config's data preprocessor is what the toolbox's own does to an image."""

from __future__ import annotations

import pytest
import torch
from helpers import pspnet_config, retinanet_config
from mmengine.config import Config
from mmengine.registry import MODELS
from torch.nn import functional as F

from repvgg_mm import UserError
from repvgg_mm.openmmlab.preprocessing import Preprocessing

pytestmark = pytest.mark.stack
IMAGE = torch.arange(3 * 20 * 28, dtype=torch.uint8).reshape(3, 20, 28)


def config(model: dict, **preprocessor) -> Config:
    model['data_preprocessor'].update(preprocessor)
    return Config(dict(model=model))


def ours(settings: Preprocessing) -> torch.Tensor:
    """The fields of `settings` written out."""
    image = IMAGE.flip(0) if settings.swap_channels else IMAGE
    image = image.float()
    if settings.mean is not None:
        mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
        image = (image - mean[:, None, None]) / std[:, None, None]
    height, width = image.shape[1:]
    bottom, right = -height % settings.pad_divisor, -width % settings.pad_divisor
    return F.pad(image, (0, right, 0, bottom), value=settings.pad_value)[None]


def theirs(cfg: Config, scope: str) -> torch.Tensor:
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    preprocessor = MODELS.build(dict(cfg.model.data_preprocessor, type=f'{scope}.{cfg.model.data_preprocessor.type}'))
    sample = Sample(metainfo=dict(img_shape=IMAGE.shape[1:], ori_shape=IMAGE.shape[1:]))
    return preprocessor(dict(inputs=[IMAGE], data_samples=[sample]), False)['inputs']


@pytest.mark.parametrize('options', [
    dict(), dict(mean=None, std=None), dict(bgr_to_rgb=False), dict(bgr_to_rgb=False, rgb_to_bgr=True),
    dict(test_cfg=dict(size_divisor=16), pad_val=7)])
def test_of_a_segmentor(options):
    cfg = config(pspnet_config(), **options)
    torch.testing.assert_close(ours(Preprocessing.of_config(cfg)), theirs(cfg, 'mmseg'))


@pytest.mark.parametrize('options', [
    dict(), dict(mean=None, std=None), dict(pad_size_divisor=1), dict(pad_size_divisor=16, pad_value=7)])
def test_of_a_detector(options):
    cfg = config(retinanet_config(), **options)
    torch.testing.assert_close(ours(Preprocessing.of_config(cfg)), theirs(cfg, 'mmdet'))


def test_a_wrapped_model_and_a_preprocessor_of_the_config_itself():
    model = pspnet_config()
    expected = Preprocessing.of_config(Config(dict(model=model)))
    assert Preprocessing.of_config(Config(dict(model=dict(type='Wrapper', model=model)))) == expected
    settings = model.pop('data_preprocessor')
    assert Preprocessing.of_config(Config(dict(model=model, data_preprocessor=settings))) == expected
    assert Preprocessing.of_config(Config(dict(model=model))) == Preprocessing(None, None, False, 1, 0)


def test_a_fixed_size_is_refused():
    with pytest.raises(UserError, match=r'pads images to a multiple, and .* pads them to \(512, 512\) in tests'):
        Preprocessing.of_config(config(pspnet_config(), test_cfg=dict(size=(512, 512))))
