"""The page of an export: what engine.json says, times beside PyTorch, and both forms where there are two."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from reports import read, write_checkpoint_of, write_config
from tool_runs import run_tool

from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.description import Half, Quantisation
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.report.export_page import BRANCHES, DEPLOY, ENGINE, TRAINING, engine_latency, export_page
from repvgg_mm.report.page import render


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
    for part in (*meta['files'].values(), f'{meta["compared"][0]["errors"]["logits"]:.1e}', TRAINING, BRANCHES,
                 f'{meta["graph"]["Conv"]} of them convolutions', 'RepVGG blocks were fused'):
        assert part in page.text, part
    assert 'What fp32 costs' not in page.text and page.text.count('ms, median') == 1  # one table of times


@pytest.fixture(scope='module')
def exported(converted, tmp_path_factory):
    """From a checkpoint in deploy form."""
    conversion, _, cfg = converted
    folder = tmp_path_factory.mktemp('exported')
    torch.save(conversion.deploy.state_dict(), folder / 'deploy.pth')
    checkpoint = Checkpoint.read(folder / 'deploy.pth')
    target = Target(shape=(64, 64), preprocess=True)
    return export(cfg, checkpoint, folder / 'engine', target, progress=lambda step: None)


def test_an_engine_from_a_deploy_form_in_fewer_bits(exported, converted):
    found = Quantisation(
        calib_images=64, metric='mIoU', float32=41.74, int8=41.47, drop=0.27, max_drop=1.0, tried=[], layers=[])
    half = Half([], 64, True, 'mIoU', 41.74, 41.70, 0.04)
    quantised = replace(exported, description=replace(exported.description, quantisation=found, half=half))
    page = export_page(quantised, converted[2], 'config.py', latency_seconds=0)
    titles = [section.title for section in page.sections]
    assert titles == [
        'The engine on real images', 'What it gets right and wrong', 'What fp32 costs', 'What fp16 costs', 'The engine',
        'Both forms']
    names = [verdict.name for verdict in page.verdicts]
    assert names == [  # no error
        'mIoU of the fp32 engine', 'mIoU of the fp16 engine', 'pixels differ', 'mean IoU of the classes']
    text = read(render(page)).text
    assert 'The checkpoint was in deploy form already' in text and 'before quantising' in text
    assert 'f32 on the machine of this page, of what is not quantised' in text


def test_the_engine_predicts_the_images_beside_the_deploy_form(exported, converted):
    page = export_page(exported, converted[2], 'deploy.py', latency_seconds=0)
    assert page.title == 'PSPHead, deploy.py'
    section = page.sections[0]
    gallery, = section.parts
    assert section.title == 'The engine on real images' and len(gallery.comparisons) == 4
    titles = [picture.title for picture in gallery.comparisons[0].pictures]
    assert titles == ['image', 'ground truth', 'deploy form, PyTorch', 'engine, fp32', 'where they differ']
    verdict, = (verdict for verdict in page.verdicts if 'between engine and deploy form' in verdict.words)
    differing = sum(comparison.differing for comparison in gallery.comparisons)
    assert verdict.value == f'{differing:,} of {4 * 64 * 64:,}' and differing < 40


def test_times_are_those_of_the_engine_and_of_each_form_in_pytorch(exported, converted):
    assert list(engine_latency(exported, rounds=2)[0]) == [DEPLOY, ENGINE]
    both, said = replace(exported, conversion=converted[0]), []
    latencies, rounds = engine_latency(both, rounds=5, progress=said.append)
    assert rounds == 5 and said == ['Measuring latency']  # and nothing more within seconds
    assert engine_latency(both, rounds=5, limit=0)[1] == 2
    assert list(latencies) == [DEPLOY, ENGINE, TRAINING, BRANCHES]
    assert all(latency.median_ms > 0 for latency in latencies.values())


def test_input_and_graph_are_those_of_the_description(exported, converted):
    page = export_page(exported, converted[2], 'config.py', latency_seconds=0)
    engine = next(section for section in page.sections if section.title == 'The engine')
    rows, _, graph = engine.parts
    assert ('input', 'image, uint8 NHWC 1 x 64 x 64 x 3') in rows.rows
    assert ('preprocessing', 'inside') in rows.rows and 'non-maximum suppression' not in dict(rows.rows)
    counts = [int(count) for _, count in graph.rows]
    assert counts == sorted(counts, reverse=True) and sum(counts) == sum(exported.description.graph.values())
    described = replace(exported.description, nms='outside the engine')
    page = export_page(replace(exported, description=described), converted[2], 'config.py', latency_seconds=0)
    assert 'outside the engine' in read(render(page)).text
