"""Engines among the models of a benchmark."""

from __future__ import annotations

import json

import pytest
import torch
from tool_runs import run_tool

from repvgg_mm import UserError
from repvgg_mm.benchmark.benchmark import Setting, benchmark, load_engines
from repvgg_mm.benchmark.output import table

pytestmark = pytest.mark.stack


def test_engines_are_rows_of_a_benchmark(segmentor):
    engines = load_engines([segmentor.engine_file('onnx'), segmentor.engine_file('labels')])
    setting = Setting(torch.randn(1, 3, 96, 96), rounds=2)
    rows = benchmark({'model': segmentor.model}, setting, ['forward', 'norm_eval step'], engines)
    assert [(row.model, row.work) for row in rows] == [
        ('model', 'forward'), *((name, 'forward') for name in engines), ('model', 'norm_eval step')]
    assert next(iter(engines)) == f'onnxruntime fp32, {segmentor.engine_file("onnx")}'
    assert all(row.lower_ms <= row.median_ms <= row.upper_ms and row.gflops is None for row in rows[1:3])
    assert table(rows).splitlines()[3].endswith(' |  |  |  |  |')
    on_cpu = load_engines([segmentor.engine_file('onnx')], 'cpu')
    assert list(on_cpu) == list(engines)[:1]
    with pytest.raises(UserError, match=r'onnxruntime runs an engine on .*, and --device gpu was asked for'):
        load_engines([segmentor.engine_file('onnx')], 'gpu')
    with pytest.raises(UserError, match=r'Engines only do forward calls, and --work is training step\. Add fo'):
        benchmark({}, setting, ['training step'], engines)
    with pytest.raises(UserError, match=r'takes float32 images of \(1, 3, 96, 96\).*got float32 of \(2, 3, 96, 96\)'):
        benchmark({}, Setting(torch.randn(2, 3, 96, 96)), ['forward'], engines)


def test_the_benchmark_tool_takes_engines(segmentor, tmp_path):
    result = run_tool('tools/benchmark.py', segmentor.engine_file('onnx'), '--shape', 96, 96, '--rounds', 2, '--json',
                      tmp_path / 'figures.json', '--plot', tmp_path / 'picture.png', '--report',
                      tmp_path / 'report.html')
    assert 'onnxruntime fp32' in (tmp_path / 'report.html').read_text()
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert 'onnxruntime' in figures['conditions'] and figures['rows'][0]['gflops'] is None
    assert f'| onnxruntime fp32, {segmentor.engine_file("onnx")} | forward |' in result.stdout
