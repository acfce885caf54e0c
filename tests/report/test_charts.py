"""Charts: they read on light and dark pages, name themselves, and their bars are the figures."""

from __future__ import annotations

import re

import pytest
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from repvgg_mm.convert.measure import Latency
from repvgg_mm.report.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    error_chart,
    latency_bars,
    latency_chart,
    name_above_bars,
    noise_chart,
    range_chart,
    svg,
)
from repvgg_mm.report.ranges import FUSED, Range


def test_charts_read_on_light_and_dark_and_name_themselves():
    chart = latency_chart({'training form': Latency(3, 2, 4), 'deploy': Latency(1.26, 1, 2)}, 'Latency "of" both')
    assert 'fill: currentColor' in chart and '1.3 ms' in chart and 'aria-label="Latency &quot;of&quot; both"' in chart
    assert '#000000' not in chart and '#ffffff' not in chart
    chart = error_chart({'a': 0.0, 'b': 2e-7}, 1e-5, 'Errors')
    assert 'equal' in chart and '2.0e-07' in chart and 'at most 1e-05' in chart


def test_several_charts_share_a_page():
    charts = [svg(lambda figure: figure.subplots().plot([1, 2]), 2, 2, label) for label in ('one chart', 'another')]
    ids = [set(re.findall(r'\bid="([^"]+)"', chart)) for chart in charts]
    assert all(ids) and not ids[0] & ids[1]
    for chart, known in zip(charts, ids):
        assert set(re.findall(r'(?:="#|url\(#)([^")]+)', chart)) <= known
    assert all(isinstance(chart, Markup) for chart in charts)


def test_text_in_charts_is_text():
    chart = latency_chart({'<b>$x^2$': Latency(3, 2, 4)}, 'a "<b>" chart')
    assert '&lt;b&gt;$x^2$' in chart and '<b>' not in chart


def test_a_bar_is_the_median_and_its_line_reaches_the_quartiles():
    axis = Figure().subplots()
    latency_bars(axis, {'a': Latency(4, 3, 6), 'b': Latency(2, 1.5, 2.25)}, ['red', 'blue'], digits=2)
    assert [bar.get_width() for bar in axis.patches] == [4, 2]
    assert [bar.get_facecolor()[:3] for bar in axis.patches] == [(1, 0, 0), (0, 0, 1)]
    lines, = axis.collections
    assert [line[:, 0].tolist() for line in lines.get_segments()] == [[3, 6], [1.5, 2.25]]
    assert [text.get_text() for text in axis.texts] == ['4.00 ms', '2.00 ms']
    assert axis.get_xlim() == (0, pytest.approx(1.35 * 6)) and axis.yaxis_inverted()


def test_green_is_faster_than_the_first_and_orange_slower():
    """The first that is not computed branch by branch."""
    latencies = {'training form,\nbranch by branch': Latency(3, 2, 4), 'deploy form': Latency(2, 1.9, 2.2),
                 'as fast': Latency(2.1, 1, 3), 'engine': Latency(1, 1, 1), 'slow engine': Latency(2.5, 2, 3)}
    chart = latency_chart(latencies, 'forms')
    bars = [colour for colour in re.findall('fill: (#[0-9a-f]{6})', chart) if colour in (BLUE, GREEN, ORANGE, GREY)]
    assert bars == [GREY, BLUE, BLUE, GREEN, ORANGE]


def test_long_names_and_long_times_stay_inside_the_picture():
    figure = Figure(figsize=(5.2, 2.5), layout='constrained')
    axis = figure.subplots()
    name = 'onnxruntime fp32, ' + 'a/long/path/' * 12 + 'engine.onnx'
    latency_bars(axis, {name: Latency(4484.7, 4400, 4500), 'b': Latency(12, 11, 13)}, ['red', 'blue'])
    name_above_bars(axis, [name, 'b'])
    figure.draw_without_rendering()
    words = [text.get_text() for text in axis.texts]
    assert words[:2] == ['4484.7 ms', '12.0 ms']
    assert re.sub(r'\s', '', words[2]) == name.replace(' ', '')
    for text in axis.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()
    assert axis.get_position().width > 0.9  # names took nothing from the bars


def test_noise_of_a_layer_is_a_bar_and_orange_where_it_stays_in_float32():
    layers = {'stem': (12.5, True), 'stage_1.0': (30.0, False), 'exact': (float('inf'), False)}
    chart = noise_chart(layers, 'noise')
    bars = [colour for colour in re.findall('fill: (#[0-9a-f]{6})', chart) if colour in (BLUE, ORANGE)]
    assert bars == [ORANGE, BLUE, BLUE]
    assert {'1', '3', 'signal to noise, dB'} <= set(re.findall(r'>([^<>\n]+)</text>', chart))


def test_ranges_have_a_colour_a_branch_and_green_for_the_fused_convolution():
    whole = Range(-4, -1, 1, 4)
    ranges = {'stem': {'3x3': whole, '1x1': whole, FUSED: whole},
              'stage_1.0': {'3x3': whole, '1x1': whole, 'identity': whole, FUSED: whole}}
    chart = range_chart(ranges, 'ranges')
    words = re.findall(r'>([^<>\n]+)</text>', chart)
    legend = [word for word in words if word in ('3x3', '1x1', 'identity', FUSED)]
    assert legend == ['3x3', '1x1', 'identity', FUSED] and {'stem', 'stage_1.0'} <= set(words)
    counts = {colour: chart.count(f'fill: {to_hex(colour)}') for colour in (BLUE, ORANGE, GREEN)}
    assert counts == {BLUE: 3, ORANGE: 3, GREEN: 3}  # a bar in each of two blocks, and the legend
