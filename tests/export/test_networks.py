"""Networks for export against the toolboxes' own test steps, images of uint8 in, predictions out."""

from __future__ import annotations

import pytest
import torch
from helpers import pspnet_config, randomise_norms, retinanet_config, segment
from mmengine.config import Config
from torch import nn

from repvgg_mm import UserError
from repvgg_mm.export.networks import Preprocess, SegmentorNetwork, network_of
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.openmmlab.preprocessing import Preprocessing

pytestmark = pytest.mark.stack
EXACT = dict(rtol=0, atol=0)


def images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def segmentor(**changes) -> tuple[nn.Module, Config]:
    torch.manual_seed(0)
    cfg = Config(dict(model=pspnet_config(), default_scope='mmseg'))
    cfg.merge_from_dict(changes)
    return randomise_norms(build_model(cfg)).eval(), cfg


@pytest.mark.parametrize('changes', [
    {}, {'model.data_preprocessor.test_cfg': dict(size_divisor=32)}, {'model.decode_head.align_corners': True},
    {'model.data_preprocessor.bgr_to_rgb': False}])
def test_segmentor_equals_mmsegs_test_step(changes):
    model, cfg = segmentor(**changes)
    batch = images(2, 3, 75, 93)
    network = SegmentorNetwork(model, Preprocess(Preprocessing.of_config(cfg)))
    with torch.no_grad():
        logits = network(batch.permute(0, 2, 3, 1))
    for i, sample in enumerate(segment(model, batch)):
        torch.testing.assert_close(logits[i], sample.seg_logits.data, rtol=1e-5, atol=1e-5)
        labels = network.labels(logits[i:i + 1])
        assert labels.dtype == torch.uint8
        torch.testing.assert_close(labels.long(), sample.pred_sem_seg.data, **EXACT)


def test_one_channel_is_compared_with_the_heads_threshold():
    model, cfg = segmentor(**{'model.decode_head.num_classes': 2, 'model.decode_head.out_channels': 1,
                              'model.decode_head.threshold': 0.6, 'model.auxiliary_head': None,
                              'model.decode_head.loss_decode': dict(type='CrossEntropyLoss', use_sigmoid=True)})
    batch = images(1, 3, 64, 64)
    network = SegmentorNetwork(model, Preprocess(Preprocessing.of_config(cfg)), argmax=True)
    with torch.no_grad():
        labels = network(batch.permute(0, 2, 3, 1))
    expected = segment(model, batch)[0].pred_sem_seg.data
    assert set(expected.unique().tolist()) == {0, 1}
    torch.testing.assert_close(labels.to(expected.dtype), expected, **EXACT)


@pytest.mark.parametrize('pad_value', [0, 7])
@pytest.mark.parametrize('config, scope', [(pspnet_config, 'mmseg'), (retinanet_config, 'mmdet')])
def test_preprocessing_equals_the_toolboxes(config, scope, pad_value):
    cfg = Config(dict(model=config(), default_scope=scope))
    cfg.model.data_preprocessor['pad_value' if scope == 'mmdet' else 'pad_val'] = pad_value
    model = build_model(cfg)
    image = images(3, 75, 93)
    expected = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
    found = Preprocess(Preprocessing.of_config(cfg))(image.permute(1, 2, 0)[None])
    assert expected.shape[2:] == ((75, 93) if scope == 'mmseg' else (96, 96))
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_data_preprocessor_outside_the_model():
    cfg = Config(dict(model=dict(type='EncoderDecoder'), data_preprocessor=dict(mean=[1.], std=[2.])))
    assert Preprocessing.of_config(cfg) == Preprocessing([1.], [2.], False, 1, 0)


def test_padding_to_a_fixed_size_is_refused():
    cfg = Config(dict(model=dict(data_preprocessor=dict(test_cfg=dict(size=(64, 64))))))
    with pytest.raises(UserError, match=r'pads them to \(64, 64\) in tests\. Export with that --shape'):
        Preprocessing.of_config(cfg)


def test_more_than_256_classes_are_int32():
    network = SegmentorNetwork(segmentor()[0])
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 299] = 1
    torch.testing.assert_close(network.labels(logits), torch.full((1, 2, 2), 299, dtype=torch.int32), **EXACT)


@pytest.mark.parametrize('make, argmax, message', [
    (lambda: nn.Conv2d(3, 3, 3), False, 'this model is a Conv2d'),
    (lambda: build_model(Config(dict(model=retinanet_config(), default_scope='mmdet'))), True, 'RetinaNet is a detec'),
    (lambda: build_model(paa()), False, "PAA with PAAHead and DeltaXYWHBBoxCoder is none of them.*RetinaHead")])
def test_models_that_no_engine_is_made_of(make, argmax, message):
    with pytest.raises(UserError, match=message):
        network_of(make(), argmax=argmax)


def paa() -> Config:
    """A one-stage detector whose head predicts in its own way."""
    anchors = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
                   strides=[8, 16, 32, 64, 128])
    head = dict(type='PAAHead', num_classes=3, in_channels=16, feat_channels=16, norm_cfg=dict(type='BN'),
                anchor_generator=anchors)
    return Config(dict(model=dict(retinanet_config(), type='PAA', train_cfg=None, bbox_head=head),
                       default_scope='mmdet'))
