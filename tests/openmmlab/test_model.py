"""The model of a config: built, recognised, and what the config says of its RepVGG."""

from __future__ import annotations

import pytest
from helpers import TINY, pspnet, pspnet_config, retinanet, retinanet_config, two_stage
from mmengine.config import Config
from torch import nn

from repvgg_mm import RepVGG, UserError
from repvgg_mm.archs import get_arch
from repvgg_mm.openmmlab.model import (
    arch_of_config,
    build_model,
    check_size,
    check_widths,
    decode_head_of,
    is_detector,
    is_segmentor,
    replace_sync_bn,
    repvgg_parts,
    shape_of_config,
)

pytestmark = pytest.mark.stack


def config(model: dict) -> Config:
    return Config(dict(model=model, default_scope=model['_scope_']))


@pytest.mark.parametrize('make, name', [(pspnet_config, 'EncoderDecoder'), (retinanet_config, 'RetinaNet')])
def test_the_model_of_a_config(make, name):
    model = build_model(config(make()))
    assert type(model).__name__ == name and isinstance(model.backbone, RepVGG)


@pytest.mark.parametrize('part, option', [('decode_head', 'nonsense'), ('backbone', 'nonsense')])
def test_an_option_that_a_part_has_not(part, option):
    model = pspnet_config()
    model[part][option] = 1
    with pytest.raises(UserError, match=rf'its toolbox has, and this one does not .*{option}.*configs/'):
        build_model(config(model))


def test_a_part_that_there_is_not():
    model = pspnet_config()
    model['decode_head']['type'] = 'NoSuchHead'
    with pytest.raises(UserError, match=r'its toolbox has, and this one does not .*NoSuchHead'):
        build_model(config(model))


def test_segmentors_and_detectors_are_told_apart():
    models = dict(pspnet=pspnet(), retinanet=retinanet(), fasterrcnn=two_stage('fasterrcnn'), backbone=RepVGG(TINY))
    assert [name for name, model in models.items() if is_segmentor(model)] == ['pspnet']
    assert [name for name, model in models.items() if is_detector(model)] == ['retinanet', 'fasterrcnn']


def test_the_head_of_a_cascade_is_the_last():
    model = pspnet_config()
    first = model.pop('auxiliary_head')
    last = dict(model['decode_head'], type='OCRHead', ocr_channels=8)
    last.pop('pool_scales')
    first.update(in_channels=get_arch(TINY).stage_channels[3], in_index=3)
    model.update(type='CascadeEncoderDecoder', num_stages=2, decode_head=[first, last])
    cascade = build_model(config(model))
    assert type(decode_head_of(cascade)).__name__ == 'OCRHead'
    assert type(decode_head_of(pspnet())).__name__ == 'PSPHead'


@pytest.mark.parametrize('name', ['RepVGG', 'repvgg_mm.RepVGG', 'repvgg_mm.backbone.RepVGG', RepVGG])
def test_every_way_to_name_the_backbone(name):
    model = dict(type='Wrapper', parts=[dict(model=pspnet_config('A0', type=name))], other=dict(type='ResNet'))
    cfg = Config(dict(model=model))
    assert [part.type for part in repvgg_parts(cfg)] == [name]
    assert arch_of_config(cfg) == 'A0'


def test_archs_of_several_backbones_and_of_none():
    several = Config(dict(model=dict(student=pspnet_config('A0'), teacher=pspnet_config(TINY))))
    found = arch_of_config(several)
    assert found == ['A0', TINY] and type(found[1]) is dict
    assert type(arch_of_config(config(pspnet_config(TINY)))) is dict
    assert arch_of_config(Config(dict(model=dict(type='ResNet')))) == []


def test_sync_bn_becomes_bn_everywhere():
    model = pspnet_config(norm_cfg=dict(type='SyncBN', momentum=0.01))
    model['decode_head']['norm_cfg'] = dict(type='SyncBN', requires_grad=True)
    cfg = config(model)
    replace_sync_bn(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', momentum=0.01)
    assert cfg.model.decode_head.norm_cfg == dict(type='BN', requires_grad=True)
    assert not [module for module in build_model(cfg).modules() if isinstance(module, nn.SyncBatchNorm)]


def test_the_shape_is_that_of_the_data_preprocessor():
    cfg = config(pspnet_config())
    assert shape_of_config(cfg) == (512, 512)
    cfg.model.data_preprocessor.size = [64, 96]
    assert shape_of_config(cfg) == (64, 96)
    cfg.model.pop('data_preprocessor')
    assert shape_of_config(cfg) == (512, 512)


def test_an_image_has_a_pixel():
    check_size((1, 1))
    for shape in ((0, 8), (8, -1)):
        with pytest.raises(UserError, match=rf'a pixel or more on each side, got --shape {shape[0]} {shape[1]}\.'):
            check_size(shape)


def with_first_head(**settings: object) -> dict:
    """A segmentor whose head is a cascade."""
    model = pspnet_config()
    first = dict(model['decode_head'], type='FCNHead', in_channels=32, in_index=2)
    first.pop('pool_scales')
    heads = [dict(first, **settings), first]
    return dict(model, type='CascadeEncoderDecoder', num_stages=2, decode_head=heads)


@pytest.mark.parametrize('model, key, wanted', [
    (dict(pspnet_config(), decode_head=dict(pspnet_config()['decode_head'], in_channels=2048)),
     'model.decode_head.in_channels is 2048', 64),
    (dict(pspnet_config(), auxiliary_head=dict(pspnet_config()['auxiliary_head'], in_channels=1024)),
     'model.auxiliary_head.in_channels is 1024', 32),
    (dict(retinanet_config(), neck=dict(retinanet_config()['neck'], in_channels=[256, 512, 1024, 2048])),
     r'model.neck.in_channels is \[256, 512, 1024, 2048\]', r'\[8, 16, 32, 64\]'),
    (with_first_head(in_channels=7), r'model.decode_head\[0\].in_channels is 7', 32)])
def test_channels_of_another_backbone(model, key, wanted):
    expected = rf'has their channels, and {key}, where this RepVGG gives {wanted} .*\(8, 16, 32, 64\).* Set .*={wanted}'
    with pytest.raises(UserError, match=expected):
        build_model(config(model))


def test_a_feature_map_that_there_is_not():
    model = pspnet_config(out_indices=(2, 3))
    with pytest.raises(UserError, match=r'some of the 2 feature maps .* model\.decode_head\.in_index is 3\. Set it to'):
        build_model(config(model))


def test_a_head_that_does_not_name_its_channels():
    cfg = config(pspnet_config())
    model = build_model(cfg)
    cfg.model.decode_head.pop('in_channels')
    check_widths(model, cfg)  # nothing is known, nothing is raised
    cfg.model.decode_head.in_channels = 7
    with pytest.raises(UserError, match=r'decode_head\.in_channels is 7'):
        check_widths(model, cfg)


@pytest.mark.parametrize('change', [
    dict(neck=[dict(retinanet_config()['neck']), dict(type='BFP', in_channels=16, num_levels=5)]),
    dict(neck=dict(retinanet_config()['neck'], in_channels=[8, 16, 32, 64]))])
def test_channels_that_fit_or_of_which_nothing_is_known(change):
    assert build_model(config(dict(retinanet_config(), **change))) is not None
