"""The page of a benchmark: the fastest first, then the figures of each kind of work."""

from __future__ import annotations

import json

from reports import HOSTILE, read, write_config
from tool_runs import run_tool

from repvgg_mm.benchmark.benchmark import Row
from repvgg_mm.benchmark.output import figure_texts
from repvgg_mm.benchmark.page import benchmark_page
from repvgg_mm.report.page import render


def test_a_benchmark_of_hostile_names():
    rows = [Row(name, work, 10.123, 9, 12, None, 3, 1.25, 2.5) for work in ('forward', 'training step')
            for name in (HOSTILE, 'b')]
    page = read(render(benchmark_page(rows, dict(device='cpu', memory_format='contiguous'))))
    assert '10.1' in page.text and 'memory format' in page.text and page.tags['svg'] == 2
    assert page.text.count(HOSTILE) == 2 + 2 * 2  # a verdict a kind of work, and its chart and table


def test_the_benchmark_tool(tmp_path):
    config = write_config(tmp_path, 'segmentor')
    run_tool('tools/benchmark.py', config, '--shape', 64, 64, '--rounds', 2, '--json', tmp_path / 'figures.json',
             '--report', tmp_path / 'report.html')
    page = read((tmp_path / 'report.html').read_text())
    for row in json.loads((tmp_path / 'figures.json').read_text())['rows']:
        assert row['model'] in page.text and f'{row["median_ms"]:.1f}' in page.text


def test_the_fastest_stands_first_and_ratios_are_to_the_first_model():
    rows = [
        Row('slow', 'forward', 20, 19, 21, None, 3, 1.25, 2.5),
        Row('fast', 'forward', 10, 9, 12, None, 3, 1.25, 2.5),
        Row('fast', 'norm_eval step', 30, 29, 31, 7, 3, 1.25, 2.5),
        Row('slow', 'norm_eval step', 45, 44, 46, 7, 3, 1.25, 2.5)]
    page = benchmark_page(rows, dict(device='cpu'))
    assert page.title == '2 models side by side' and page.facts['device'] == 'cpu'
    assert [(verdict.value, verdict.name, verdict.words) for verdict in page.verdicts] == [
        ('10.0 ms', 'fastest forward', 'fast'), ('30.0 ms', 'fastest norm_eval step', 'fast')]
    assert [section.title for section in page.sections] == ['Forward', 'Norm_eval step']
    table = page.sections[0].parts[1]
    assert table.rows == [
        ('slow', '20.0', '19.0 to 21.0', *figure_texts(rows[0], rows[0])),
        ('fast', '10.0', '9.0 to 12.0', *figure_texts(rows[1], rows[0]))]
    assert table.rows[1][3] == '0.50' and len(table.head) == len(table.rows[0])
    assert benchmark_page(rows[:1], {}).title == 'slow'
