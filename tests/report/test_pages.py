"""The pages of --report: one file that needs nothing, with the numbers that were found and no markup from names."""

from __future__ import annotations

import json
import resource
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pspnet_config, randomise_norms, retinanet_config
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from tool_runs import assert_refused, derived_config, run_tool, small_data

from repvgg_mm import UserError
from repvgg_mm.convert.measure import Latency
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.conversion import convert_checkpoint
from repvgg_mm.deploy.costs import measure
from repvgg_mm.export.export import Target, export
from repvgg_mm.files.atomic import check_output_file
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.report.benchmark import Row
from repvgg_mm.report.charts import error_chart, latency_chart
from repvgg_mm.report.page import Page, render, write_page
from repvgg_mm.report.pages import benchmark_page, conversion_page, export_page
from repvgg_mm.report.side_by_side import _compare_boxes, _compare_masks, draw_mask, side_by_side

VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}
HOSTILE = '<script>alert(1)</script>$x^$&"\'.py'


class Reader(HTMLParser):
    """Collects tags, addresses, ids and text of a page, and checks that tags close in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open, self.tags, self.addresses, self.ids, self.words = [], Counter(), [], Counter(), []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags[tag] += 1
        self.addresses += [value for name, value in attributes if name in ('src', 'href', 'xlink:href', 'srcset')]
        self.ids.update(value for name, value in attributes if name == 'id')
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return ' '.join(' '.join(self.words).split())


def read(content: str) -> Reader:
    """A page that was checked to be whole and to load nothing."""
    page = Reader(content)
    assert all(address.startswith(('data:image/', '#')) for address in page.addresses)
    assert not {'script', 'link', 'iframe', 'object', 'embed', 'form'} & set(page.tags)
    assert '@import' not in content and 'url(http' not in content
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert {address[1:] for address in page.addresses if address.startswith('#')} <= set(page.ids)
    assert len(content) < 2_000_000
    return page


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=5, size=64)


def write_config(folder: Path, task: str) -> Path:
    if task == 'segmentor':
        model = pspnet_config()
        model['decode_head']['num_classes'] = model['auxiliary_head']['num_classes'] = 6
        model['data_preprocessor']['test_cfg'] = dict(size_divisor=32)
        return derived_config(folder / 'segmentor.py', f'model = dict(_delete_=True, **{model})')
    model = retinanet_config()
    model['bbox_head']['num_classes'] = 5
    return derived_config(folder / 'detector.py', f'model = dict(_delete_=True, **{model})',
                          'configs/retinanet_repvgg_a0_shapes.py')


def config_of(path: Path, root: Path) -> Config:
    cfg = Config.fromfile(path)
    cfg.val_dataloader.dataset.data_root = str(root)
    return cfg


def checkpoint_of(path: Path) -> Path:
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    torch.save(randomise_norms(build_model(cfg)).state_dict(), path.with_suffix('.pth'))
    return path.with_suffix('.pth')


@pytest.fixture(scope='module')
def converted(tmp_path_factory, shapes):
    """Conversion, costs and config of a segmentor, whose data are there."""
    path = write_config(tmp_path_factory.mktemp('config'), 'segmentor')
    cfg = config_of(path, shapes)
    conversion = convert_checkpoint(cfg, checkpoint_of(path), (64, 64))
    return conversion, measure(conversion), cfg


@pytest.mark.stack
def test_the_conversion_tool_with_data(shapes, tmp_path):
    config = write_config(tmp_path, 'segmentor')
    checkpoint = checkpoint_of(config)
    result = run_tool('tools/convert_whole.py', config, checkpoint, '--out', tmp_path / 'out', '--shape', 64, 64,
                      '--report', tmp_path / 'new' / 'report.html', '--cfg-options', *small_data(shapes))
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['deploy.pth', 'deploy.py']
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['report.html']
    page = read((tmp_path / 'new' / 'report.html').read_text())
    meta = torch.load(tmp_path / 'out' / 'deploy.pth')['meta']
    for part in ('segmentor.py', 'segmentor.pth', meta['source_sha256'], f'{meta["worst_relative_error"]:.1e}',
                 str(torch.__version__), 'branch by branch', 'stage_3.2', 'on 4 images of the validation set'):
        assert part in page.text, part
    for line in result.stdout.splitlines():  # every number of the tool's own report
        if line.startswith(('  backbone', '  output', '| parameters', '| GFLOPs', '| latency')):
            words = line.replace('|', ' ').split()
            assert all(word in page.text for word in words if word[0].isdigit()), line
    assert page.tags['img'] == 4 * 5 and page.tags['svg'] == 4
    assert sum('of 4,096 pixels differ' in word for word in page.words) == 4


@pytest.mark.stack
def test_a_detector_with_data(shapes, tmp_path):
    path = write_config(tmp_path, 'detector')
    cfg = config_of(path, shapes)
    conversion = convert_checkpoint(cfg, checkpoint_of(path), (64, 64))
    page = read(render(conversion_page(conversion, measure(conversion), cfg, 'detector.py')))
    assert page.tags['img'] == 4 * 5 and sum('without a counterpart' in word for word in page.words) == 4
    assert all(name in page.words for name in ('disk', 'cross')) and 'boxes differ' in page.text


@pytest.mark.parametrize('damage', ['no loader', 'no folder', 'no image', 'image'])
def test_data_that_cannot_be_read(damage, converted, shapes, tmp_path):
    conversion, costs, cfg = converted
    cfg = Config(cfg._cfg_dict.to_dict())
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
    conversion.meta['source'], source = HOSTILE, conversion.meta['source']
    conversion.errors[HOSTILE] = 1e-7
    page = read(render(conversion_page(conversion, costs, cfg, HOSTILE)))
    conversion.meta['source'] = source
    del conversion.errors[HOSTILE]
    assert page.text.count(HOSTILE) >= 3  # title, facts and the chart of errors


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


@pytest.mark.stack
def test_the_export_tool(tmp_path):
    config = write_config(tmp_path, 'segmentor')
    run_tool('tools/export.py', config, checkpoint_of(config), '--out', tmp_path / 'engine', '--shape', 64, 64,
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


def test_an_engine_from_a_deploy_form_and_its_quantisation(converted, tmp_path):
    conversion, _, cfg = converted
    torch.save(conversion.deploy.state_dict(), tmp_path / 'deploy.pth')
    exported = export(cfg, tmp_path / 'deploy.pth', tmp_path / 'engine', Target(shape=(64, 64), preprocess=True),
                      progress=lambda step: None)
    exported.meta['quantisation'] = dict(
        calib_images=64, metric='mIoU', float32=41.74, int8=41.47,
        layers=[dict(layer='stem', snr_db=31.256, range=[-1.5, 2]), dict(layer='stage_1.0')])
    page = read(render(export_page(exported, cfg, 'config.py', None)))
    for part in ('the checkpoint was in deploy form already'.capitalize(), 'Quantisation', 'calib images', '64',
                 'snr db', '31.26', '-1.5, 2', '41.47', 'mIoU in int8', '41.74 in float32', 'before quantising'):
        assert part in page.text, part


@pytest.mark.parametrize('name, message', [
    ('report.pth', r'--report names a file in \.html, \.htm, and report\.pth is none'),
    ('/proc/report.html', r'/proc/report\.html could not be written .*Choose a folder')])
def test_where_no_report_can_be_written(name, message):
    with pytest.raises(UserError, match=message):
        check_output_file('--report', Path(name), '.html', '.htm')


def test_tools_check_the_report_before_the_work(tmp_path):
    for tool, arguments in (('convert_whole', ('absent.pth', '--out', tmp_path / 'out')),
                            ('benchmark', ())):
        result = run_tool(f'tools/{tool}.py', 'configs/pspnet_repvgg_a0_shapes.py', *arguments, '--report',
                          '/proc/report.html', check=False)
        assert_refused(result, '/proc/report.html could not be written')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_report(tmp_path):
    (tmp_path / 'folder.html').mkdir()
    with pytest.raises(UserError, match='a folder'):
        check_output_file('--report', tmp_path / 'folder.html', '.html')


def test_full_disk_leaves_the_old_report(tmp_path):
    page = Page('x' * 100_000, 'Report', {}, [], [])
    (tmp_path / 'report.html').write_text('old')
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # files of 50 kB at most, as on a full disk
    try:
        with pytest.raises(UserError, match=r'report\.html could not be written .*nothing was left there'):
            write_page(tmp_path / 'report.html', page)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['old']


def test_a_name_that_is_no_text(tmp_path):
    write_page(tmp_path / 'report.html', Page('caf\udce9.py', 'Report', {}, [], []))
    assert 'caf\\udce9.py' in read((tmp_path / 'report.html').read_text()).text


def test_charts_read_on_light_and_dark_and_name_themselves():
    chart = latency_chart({'training form': Latency(3, 2, 4), 'deploy': Latency(1.26, 1, 2)}, 'Latency "of" both')
    assert 'fill: currentColor' in chart and '1.3 ms' in chart and 'aria-label="Latency &quot;of&quot; both"' in chart
    assert '#000000' not in chart and '#ffffff' not in chart
    chart = error_chart({'a': 0.0, 'b': 2e-7}, 1e-5, 'Errors')
    assert 'equal' in chart and '2.0e-07' in chart and 'at most 1e-05' in chart


def masks(*labels: np.ndarray) -> list:
    from mmseg.structures import SegDataSample
    return [SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(one)[None])) for one in labels]


def test_differing_pixels_are_counted():
    labels = np.arange(48).reshape(6, 8) % 5
    other = labels.copy()
    other[2, 3:6] += 1
    assert _compare_masks(*masks(labels, other))[:3] == (3, 48, '3 of 48 pixels differ')


def test_pixels_without_a_label_are_black():
    sample, = masks(np.array([[0, 1, 255]]))
    axis = Figure().subplots()
    draw_mask(axis, None, sample, 'pred', np.array([[9, 8, 7], [1, 2, 3]], dtype=np.uint8))
    assert axis.images[0].get_array().tolist() == [[[9, 8, 7], [1, 2, 3], [0, 0, 0]]]


def boxes(*rows: tuple) -> object:
    """x1, y1, x2, y2, label, score."""
    from mmdet.structures import DetDataSample
    table = torch.tensor(rows).reshape(-1, 6)
    return DetDataSample(pred_instances=InstanceData(
        bboxes=table[:, :4], labels=table[:, 4].long(), scores=table[:, 5]))


@pytest.mark.parametrize('second, differing', [
    ([(10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.8)], 0),
    ([(30, 30, 50, 40.5, 1, 0.8), (10, 10, 20, 20, 0, 0.9)], 0),   # another order, half a pixel
    ([(10, 10, 20, 20, 0, 0.9), (30, 30, 50, 42, 1, 0.8)], 2),     # two pixels: one alone in each
    ([(10, 10, 20, 20, 1, 0.9), (30, 30, 50, 40, 1, 0.8)], 2),     # another class
    ([(10, 10, 20, 20, 0, 0.9)], 1), ([], 2),
    ([(10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.8), (0, 0, 9, 9, 0, 0.4)], 0)])  # the last is not drawn
def test_boxes_without_a_counterpart_are_counted(second, differing):
    first = boxes((10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.8))
    for pair in ((first, boxes(*second)), (boxes(*second), first)):
        found = _compare_boxes(*pair)
        assert found[:2] == (differing, 2) and f'{differing} of 2 boxes' in found[2]


def test_images_of_two_models_that_differ(converted, shapes):
    conversion, _, cfg = converted
    other = build_model(cfg).eval()
    found = side_by_side(cfg, dict(one=conversion.trained, other=other), 2)
    assert [comparison.total for comparison in found.comparisons] == [64 * 64] * 2
    assert all(comparison.differing > 0 for comparison in found.comparisons)
    assert [tuple(batch.shape) for batch in found.inputs] == [(1, 3, 64, 64)] * 2
    assert [picture.title for picture in found.comparisons[0].pictures] == [
        'image', 'ground truth', 'one', 'other', 'where they differ']
    assert found.legend[0] == ('background', 'rgb(60, 60, 60)')
