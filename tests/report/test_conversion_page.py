"""The page of a conversion: the numbers that were found, images if there are some, and no markup from names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from reports import HOSTILE, config_of, read, write_checkpoint_of, write_config
from tool_runs import run_tool, small_data

from repvgg_mm.convert.compare import OutputErrors
from repvgg_mm.convert.measure import Latency
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import convert_checkpoint
from repvgg_mm.deploy.costs import Costs, cost_rows, costs_table, measure_costs
from repvgg_mm.openmmlab.config import copy_of, import_toolbox
from repvgg_mm.report.conversion_page import conversion_page
from repvgg_mm.report.page import Table, render


@pytest.mark.stack
def test_the_conversion_tool_with_data(shapes, tmp_path):
    config = write_config(tmp_path, 'segmentor')
    checkpoint = write_checkpoint_of(config)
    result = run_tool('tools/convert_whole.py', config, checkpoint, '--out', tmp_path / 'out', '--shape', 64, 64,
                      '--report', tmp_path / 'new' / 'report.html', '--cfg-options', *small_data(shapes))
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['deploy.pth', 'deploy.py']
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['report.html']
    page = read((tmp_path / 'new' / 'report.html').read_text())
    meta = torch.load(tmp_path / 'out' / 'deploy.pth')['meta']
    for part in ('segmentor.py', 'segmentor.pth', meta['source_sha256'], f'{meta["worst_relative_error"]:.1e}',
                 str(torch.__version__), 'branch by branch', 'stage_3.2', '4 of the 5 images of the validation set',
                 'on 4 images of the validation set'):
        assert part in page.text, part
    for line in result.stdout.splitlines():  # every number of the tool's own report
        if line.startswith(('  backbone', '  output', '| parameters', '| GFLOPs', '| latency')):
            words = line.replace('|', ' ').split()
            assert all(word in page.text for word in words if word[0].isdigit()), line
    assert page.tags['img'] == 4 * 5 + 3 * 4 and page.tags['svg'] == 5
    assert 'What it gets right and wrong' in page.text and 'mean IoU of the classes' in page.text
    assert sum('of 4,096 pixels differ' in word for word in page.words) == 4


@pytest.mark.stack
def test_a_detector_with_data(shapes, tmp_path):
    path = write_config(tmp_path, 'detector')
    cfg = config_of(path, shapes)
    conversion = convert_checkpoint(cfg, Checkpoint.read(write_checkpoint_of(path)), (64, 64))
    page = read(render(conversion_page(conversion, measure_costs(conversion), cfg, 'detector.py')))
    assert page.tags['img'] == 4 * 5 + 3 * 4
    assert 'objects are found' in page.text
    assert sum('boxes without a counterpart' in word for word in page.words) == 4 + 1  # pictures, and the caption
    assert all(name in page.words for name in ('disk', 'cross')) and 'boxes differ' in page.text


@pytest.mark.parametrize('damage', ['no loader', 'no folder', 'no image', 'image'])
def test_data_that_cannot_be_read(damage, converted, shapes, tmp_path):
    conversion, costs, cfg = converted
    cfg = copy_of(cfg)
    import_toolbox(cfg)
    if damage == 'no loader':
        cfg.val_dataloader = None
    elif damage == 'no folder':
        cfg.val_dataloader.dataset.data_root = str(tmp_path / 'absent')
    else:
        root = make_shapes(tmp_path / 'shapes', num_train=1, num_val=1, size=32)
        image, = (root / 'images' / 'val').iterdir()
        image.unlink() if damage == 'no image' else image.write_bytes(b'no image')
        cfg.val_dataloader.dataset.data_root = str(root)
    page = read(render(conversion_page(conversion, costs, cfg, 'config.py')))
    expected = {'no loader': 'this config has none', 'no folder': 'BaseSegDataset reads images/val and labels/val',
                'no image': 'The validation set of the config cannot be read',
                'image': 'Image 0 of the validation set cannot be read'}
    assert 'No images were used.' in page.text and expected[damage] in page.text
    assert 'on random input of 1x3x64x64, because there are no images' in page.text and page.tags['img'] == 0


def test_names_do_not_become_markup(converted):
    conversion, costs, cfg = converted
    cfg = Config(dict(cfg._cfg_dict.to_dict(), val_dataloader=None))
    hostile = replace(
        conversion,
        meta=dict(conversion.meta, source=HOSTILE),
        errors=OutputErrors({**conversion.errors, HOSTILE: 1e-7}))
    page = read(render(conversion_page(hostile, costs, cfg, HOSTILE)))
    assert page.text.count(HOSTILE) >= 3  # title, facts and the chart of errors


def test_the_page_has_the_rows_of_the_printed_table_and_what_changed(converted):
    conversion, _, cfg = converted
    cfg = Config(dict(cfg._cfg_dict.to_dict(), val_dataloader=None))
    latency = dict(branches=Latency(30, 29, 31), training=Latency(20, 19, 21), deploy=Latency(8, 7, 9))
    costs = Costs(blocks=7, parameters=(2_000_000, 1_500_000), macs=(10**9, 9 * 10**8), latency=latency)
    page = conversion_page(conversion, costs, cfg, 'config.py')
    table = page.sections[0].parts[0]
    assert isinstance(table, Table)
    assert [tuple(row[:3]) for row in table.rows] == [(row.name, *row.texts) for row in cost_rows(costs)]
    assert [row[3] for row in table.rows] == ['\u221225.0 %', '\u221210.0 %', '', '\u221260.0 %']
    printed = costs_table(conversion, costs)
    for name, training, deploy, _ in table.rows:
        assert f'| {name:<34} | {training:>14} | {deploy:>14} |' in printed
    verdicts = {verdict.name: (verdict.value, verdict.words) for verdict in page.verdicts}
    assert verdicts['as fast as branch by branch'] == (
        '3.75x', '30.0 to 8.0 ms; against the training form as evaluated 2.50x')
    assert verdicts['parameters'] == ('1.50 M', '2.00 M in training form')


@pytest.mark.parametrize(('deploy', 'good'), [(19, True), (20.5, None), (31, False)])
def test_only_the_fastest_form_is_green(deploy, good, converted):
    conversion, costs, cfg = converted
    cfg = Config(dict(cfg._cfg_dict.to_dict(), val_dataloader=None))
    latency = dict(branches=Latency(30, 29, 31), training=Latency(20, 19, 21), deploy=Latency(deploy, 18, 32))
    page = conversion_page(conversion, replace(costs, latency=latency), cfg, 'config.py')
    verdict, = (verdict for verdict in page.verdicts if verdict.name == 'as fast as branch by branch')
    assert verdict.good is good


def test_without_latency_the_page_has_none(converted):
    conversion, costs, cfg = converted
    cfg = Config(dict(cfg._cfg_dict.to_dict(), val_dataloader=None))
    page = conversion_page(conversion, replace(costs, latency={}, rounds=0), cfg, 'config.py')
    assert 'as fast as branch by branch' not in [verdict.name for verdict in page.verdicts]
    table, = page.sections[0].parts
    assert [row[0] for row in table.rows] == ['parameters (million)', 'GFLOPs']


def test_a_block_is_called_by_what_tells_it_from_the_others(converted):
    conversion, costs, cfg = converted
    cfg = Config(dict(cfg._cfg_dict.to_dict(), val_dataloader=None))
    page = conversion_page(conversion, costs, cfg, 'config.py')
    weights, = (section for section in page.sections if section.title.startswith('Weights'))
    chart, table = weights.parts
    assert [row[0] for row in table.rows][:2] == ['backbone.stem', 'backbone.stage_1.0']
    assert '>stem<' in chart.svg and 'backbone.stem' not in chart.svg
    worst = max(table.rows, key=lambda row: float(row[-1]))
    assert f'Most uneven is {worst[0]}: ' in chart.caption and f'{worst[-1]} times' in chart.caption
