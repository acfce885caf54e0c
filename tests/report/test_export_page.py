"""The page of an export: what engine.json says, times beside PyTorch, and both forms where there are two."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from reports import read, write_checkpoint_of, write_config
from tool_runs import run_tool

from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.description import Attempt, Quantisation
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.report.export_page import engine_latency, export_page
from repvgg_mm.report.page import Table, render


@pytest.mark.stack
def test_the_export_tool(tmp_path):
    config = write_config(tmp_path, 'segmentor')
    run_tool('tools/export.py', config, write_checkpoint_of(config), '--out', tmp_path / 'engine', '--shape', 64, 64,
             '--report', tmp_path / 'engine' / 'report.html', '--cfg-options',
             f'val_dataloader.dataset.data_root={tmp_path / "absent"}')
    assert sorted(path.name for path in (tmp_path / 'engine').iterdir()) == [
        'engine.json', 'engine.onnx', 'report.html']
    page = read((tmp_path / 'engine' / 'report.html').read_text())
    meta = json.loads((tmp_path / 'engine' / 'engine.json').read_text())
    assert 'No images were used. BaseSegDataset' in page.text
    for part in (*meta['files'].values(), f'{meta["compared"][0]["errors"]["logits"]:.1e}', 'PyTorch, training form',
                 f'{meta["graph"]["Conv"]} of them convolutions', 'RepVGG blocks were fused'):
        assert part in page.text, part
    assert 'Quantisation' not in page.text


@pytest.fixture(scope='module')
def exported(converted, tmp_path_factory):
    """From a checkpoint in deploy form."""
    conversion, _, cfg = converted
    folder = tmp_path_factory.mktemp('exported')
    torch.save(conversion.deploy.state_dict(), folder / 'deploy.pth')
    checkpoint = Checkpoint.read(folder / 'deploy.pth')
    target = Target(shape=(64, 64), preprocess=True)
    return export(cfg, checkpoint, folder / 'engine', target, progress=lambda step: None)


def quantisation(layers: list[dict]) -> Quantisation:
    return Quantisation(
        calib_images=64, metric='mIoU', float32=41.74, int8=41.47, drop=0.27, max_drop=1.0,
        tried=[Attempt(equalised=True, float32=['stem'], metric=41.47)], layers=layers)


def test_an_engine_from_a_deploy_form_and_its_quantisation(exported, converted):
    layers = [dict(layer='stem', snr_db=31.256, range=[-1.5, 2]), dict(layer='stage_1.0')]
    quantised = replace(exported, description=replace(exported.description, quantisation=quantisation(layers)))
    page = read(render(export_page(quantised, converted[2], 'config.py')))
    for part in ('the checkpoint was in deploy form already'.capitalize(), 'Quantisation', 'calib images', '64',
                 'snr db', '31.26', '-1.5, 2', '41.47', 'mIoU in int8', '41.74 in float32', 'before quantising'):
        assert part in page.text, part


@pytest.mark.parametrize('count', [12, 13])
def test_a_long_table_of_layers_is_folded(count, exported, converted):
    layers = [dict(layer=f'layer {number}', snr_db=30.0) for number in range(count)]
    quantised = replace(exported, description=replace(exported.description, quantisation=quantisation(layers)))
    page = export_page(quantised, converted[2], 'config.py')
    section, = (section for section in page.sections if section.title == 'Quantisation')
    figures, tried, layers = section.parts
    assert all(isinstance(part, Table) for part in section.parts)
    assert ('max drop', '1') in figures.rows and tried.caption == 'tried (1)'
    assert tried.rows == [['True', 'stem', '41.47']]
    assert (layers.caption, layers.folded) == (f'layers ({count})', count > 12)


def test_times_are_those_of_the_engine_and_of_each_form_in_pytorch(exported, converted):
    assert list(engine_latency(exported, rounds=2)) == ['PyTorch, deploy form', 'engine']
    both = replace(exported, conversion=converted[0])
    latencies = engine_latency(both, rounds=2)
    assert list(latencies) == ['PyTorch, training form', 'PyTorch, deploy form', 'engine']
    assert all(latency.median_ms > 0 for latency in latencies.values())


def test_input_and_graph_are_those_of_the_description(exported, converted):
    page = export_page(exported, converted[2], 'config.py')
    engine = next(section for section in page.sections if section.title == 'The engine')
    rows, _, graph = engine.parts
    assert ('input', 'image, uint8 NHWC 1 x 64 x 64 x 3') in rows.rows
    assert ('preprocessing', 'inside') in rows.rows and 'non-maximum suppression' not in dict(rows.rows)
    counts = [int(count) for _, count in graph.rows]
    assert counts == sorted(counts, reverse=True) and sum(counts) == sum(exported.description.graph.values())
    described = replace(exported.description, nms='outside the engine')
    page = export_page(replace(exported, description=described), converted[2], 'config.py')
    assert 'outside the engine' in read(render(page)).text
