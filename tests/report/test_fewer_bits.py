"""What fewer bits cost, in words, in a picture and in tables."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from mmengine.config import Config

from repvgg_mm.engine.description import Attempt, Half, Quantisation
from repvgg_mm.precision.layer_noise import LayerNoise
from repvgg_mm.report.fewer_bits import (
    LAYER_COLUMNS,
    drop_text,
    half_section,
    half_verdict,
    quantisation_section,
    quantisation_verdict,
)

WITHOUT_DATA = Config(dict(val_dataloader=None))
FOUND = Quantisation(
    calib_images=64, metric='mIoU', float32=41.74, int8=41.47, drop=0.27, max_drop=1.0,
    tried=[Attempt(False, [], 40.1), Attempt(True, ['stem'], 41.47)],
    layers=[asdict(LayerNoise('stem', 9.187, 10.14, -20.7, 14.2, 31.256, float('inf'))),
            asdict(LayerNoise('stage_1.0', 0.75, 2.328, -16.0, 12.28, 3.94, 28.79))])
HALF = Half(['/Conv', '/Add'], 100, True, 'mIoU', 42.05, 42.04, 0.01)


def test_metric_and_drop_are_told_in_words(converted):
    section = quantisation_section(FOUND, 'int8', converted[2])
    assert section.title == 'What int8 costs'
    assert section.text == (
        'mIoU is 41.74 in float32 and 41.47 in int8: a drop of 0.27 points, at most 1 may be lost. It was measured on '
        '5 validation images; ranges come from 64 calibration images of the training set.')
    verdict = quantisation_verdict(FOUND, 'int8')
    assert (verdict.value, verdict.name, verdict.good) == ('41.47', 'mIoU of the int8 engine', True)
    assert quantisation_verdict(replace(FOUND, max_drop=0.2), 'int8').good is False


def test_a_gain_is_no_drop():
    assert drop_text(replace(FOUND, drop=-0.1)) == 'a gain of 0.10 points, at most 1 may be lost'


def test_noise_is_a_picture_and_its_table_is_folded():
    assert list(LAYER_COLUMNS) == list(FOUND.layers[0])
    chart, layers, _ = quantisation_section(FOUND, 'int8', WITHOUT_DATA).parts
    assert 'Noisiest is stage_1.0 with 3.9 dB.' in chart.caption and 'Orange stays in float32' in chart.caption
    assert layers.folded and layers.caption == 'Ranges and noise of each layer as a table (2)'
    assert layers.rows == [
        ('stem (in float32)', '9.187', '10.14', '-20.7', '14.2', '31.26', ''),
        ('stage_1.0', '0.75', '2.328', '-16', '12.28', '3.94', '28.79')]


def test_what_was_tried_is_told_in_words():
    *_, tried = quantisation_section(FOUND, 'int8', WITHOUT_DATA).parts
    assert tried.head == ('attempt', 'mIoU')
    assert tried.rows == [
        ('every convolution, as it is', '40.10'), ('channels equalised, 1 convolution in float32', '41.47')]


def test_what_is_not_known_is_left_out():
    unknown = replace(FOUND, layers=[dict(name='stem', snr_db=None)], tried=[])
    table, = quantisation_section(unknown, 'int8', WITHOUT_DATA).parts
    assert table.rows == [('stem', *[''] * 6)]
    assert quantisation_section(replace(unknown, layers=[]), 'int8', WITHOUT_DATA).parts == []


def test_fp16_tells_its_metric_and_what_stays_in_float32(converted):
    section = half_section(HALF, converted[2])
    assert section.text == (
        'mIoU is 42.05 in float32 and 42.04 in fp16: a drop of 0.01 points, measured on 5 validation images. Operators '
        'stay in float32 where numbers come near the end of the range of float16, 65504, on 100 calibration images of '
        'the training set.')
    table, = section.parts
    assert (table.caption, table.rows, table.folded) == ('In float32 (2)', [('/Conv',), ('/Add',)], False)
    assert half_verdict(HALF).words == (
        '42.05 in float32; a drop of 0.01 points, on the validation set; 2 operators stay in float32')


@pytest.mark.parametrize(('count', 'folded'), [(12, False), (13, True)])
def test_a_long_list_is_folded(count, folded):
    table, = half_section(replace(HALF, float32=[str(number) for number in range(count)]), WITHOUT_DATA).parts
    assert table.folded is folded


def test_fp16_without_data():
    section = half_section(Half([], images=2, of_training_set=False), WITHOUT_DATA)
    assert section.text == (
        'The metric was not measured: the config has no validation data here. No numbers come near the end of the '
        'range of float16, 65504, on 2 random images: every operator is in float16.')
    assert section.parts == []
