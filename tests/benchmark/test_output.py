"""What a benchmark found, on the screen, in a file and in a picture: the same figures everywhere."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import pytest

from repvgg_mm import UserError
from repvgg_mm.benchmark.benchmark import Row
from repvgg_mm.benchmark.output import draw, figure_texts, latencies_of, rows_by_work, table, write_json
from repvgg_mm.convert.measure import Latency

ROWS = [
    Row('a, deploy form', 'forward', 10.04, 9, 12.5, None, 3.4, 1.256, 2.5),
    Row('a, training form', 'forward', 15.06, 14, 16, None, 6.6, 1.5, 3),
    Row('onnxruntime fp32, a.onnx', 'forward', 5.02, 5, 6),
    Row('a, training form', 'training step', 40, 38, 44, 120.4, 130, 1.5, 3)]


def test_the_table_compares_with_the_first_model_of_the_same_work():
    assert table(ROWS).splitlines() == [
        '| model | work | ms, median (quartiles) | ratio | kept for backward, MiB | peak, MiB | million parameters '
        '| GFLOPs |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
        '| a, deploy form | forward | 10.0 (9.0 to 12.5) | 1.00 |  | 3 | 1.26 | 2.50 |',
        '| a, training form | forward | 15.1 (14.0 to 16.0) | 1.50 |  | 7 | 1.50 | 3.00 |',
        '| onnxruntime fp32, a.onnx | forward | 5.0 (5.0 to 6.0) | 0.50 |  |  |  |  |',
        '| a, training form | training step | 40.0 (38.0 to 44.0) | 1.00 | 120 | 130 | 1.50 | 3.00 |']


def test_rows_are_sorted_into_kinds_of_work():
    found = rows_by_work([ROWS[3], *ROWS[:3]])
    assert list(found) == ['training step', 'forward'] and found['forward'] == ROWS[:3]
    assert latencies_of(ROWS[2:3]) == {'onnxruntime fp32, a.onnx': Latency(5.02, 5, 6)}
    assert figure_texts(ROWS[2], ROWS[0]) == ('0.50', '', '', '', '')


def test_the_file_holds_every_field_and_what_it_depends_on(tmp_path):
    write_json(tmp_path / 'figures.json', ROWS, dict(device='cpu'))
    content = json.loads((tmp_path / 'figures.json').read_text())
    assert content['conditions'] == dict(device='cpu')
    assert [Row(**row) for row in content['rows']] == ROWS
    with pytest.raises(UserError, match='could not be written'):
        write_json(tmp_path / 'figures.json' / 'below.json', ROWS, {})


@pytest.mark.parametrize('suffix, start', [('.png', b'\x89PNG'), ('.PDF', b'%PDF'), ('.svg', b'<?xml')])
def test_the_picture_is_of_the_kind_that_its_name_says(suffix, start, tmp_path):
    draw(tmp_path / f'picture{suffix}', ROWS, dict(device='cpu'))
    assert (tmp_path / f'picture{suffix}').read_bytes().startswith(start)


def test_the_picture_has_a_panel_a_work_and_a_bar_a_model(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, 'close', figures.append)
    draw(tmp_path / 'picture.png', ROWS, dict(device='cpu', rounds='15'))
    monkeypatch.undo()
    figure, = figures
    assert [axis.get_title() for axis in figure.axes] == ['forward', 'training step']
    widths = [[bar.get_width() for bar in axis.patches] for axis in figure.axes]
    assert widths == [[10.04, 15.06, 5.02], [40]]
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches]
    assert len(set(colours)) == 3 and figure.axes[1].patches[0].get_facecolor() == colours[1]
    assert figure.get_supxlabel() == 'device cpu, rounds 15'
    plt.close(figure)
