"""benchmarks/pareto.py: every backbone gets the same treatment, and what follows from the figures is right."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import randomise_norms
from tool_runs import ROOT, run_tool
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from repvgg_mm.block import branch_by_branch
from repvgg_mm.export.networks import network_of
from repvgg_mm.openmmlab.config import import_toolbox
from repvgg_mm.openmmlab.model import build_model

sys.path.append(str(ROOT / 'benchmarks'))
import pareto
from protocol.backbones import BACKBONES, HEADS, config_of
from protocol.records import FORMS, Key, Records
from protocol.tables import at_latency, curve_of, table_of, verdict_of

DATA = Path(os.environ.get('REPVGG_MM_DATA', ROOT / 'data'))
needs_data = pytest.mark.skipif(
    not (DATA / 'camvid').is_dir(), reason=f'no real data: {DATA}/camvid is missing, set REPVGG_MM_DATA')
HEAD = 'semfpn_camvid'


# ---- the protocol

@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('head', HEADS)
def test_every_backbone_fits_every_head(head, backbone):
    cfg = config_of(head, backbone, 0)
    import_toolbox(cfg)
    with torch.device('meta'):
        model = build_model(cfg)
        image = torch.empty(2, 3, 96, 96)

    features = model.backbone(image)
    wider = (head, backbone) == ('retinanet_bccd', 'MobileNetV2')  # mmdet's own last layer
    assert tuple(feature.shape[1] for feature in features) == (
        (24, 32, 96, 1280) if wider else BACKBONES[backbone].channels)
    strides = [96 // feature.shape[2] for feature in features]
    assert strides == ([4, 8, 8, 8] if head == 'pspnet_camvid' else [4, 8, 16, 32])
    if head == 'retinanet_bccd':
        assert len(model.extract_feat(image)) == 5
    else:
        assert model.encode_decode(image, [dict(img_shape=(96, 96))]).shape == (2, 11, 96, 96)


@pytest.mark.parametrize('head', HEADS)
def test_nothing_but_the_backbone_differs(head):
    configs = [config_of(head, backbone, 0).to_dict() for backbone in BACKBONES]
    for cfg in configs:
        assert cfg['model']['backbone'].pop('norm_eval') is False  # mmdet's default would freeze random statistics
        del cfg['model']['backbone']
        for part in ('neck', 'decode_head', 'auxiliary_head'):
            if part == 'neck' or head == 'pspnet_camvid':
                (cfg['model'].get(part) or {}).pop('in_channels', None)
    assert all(cfg == configs[0] for cfg in configs)


def test_seed_and_steps():
    cfg = config_of(HEAD, 'ResNet-18', 3, 4000)  # twice as many as the head has
    assert cfg.randomness == dict(seed=3)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (4000, 4000)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end, decay.begin, decay.end) == (0, 100, 100, 4000)
    warm_up, decay = config_of(HEAD, 'ResNet-18', 3, 2).param_scheduler
    assert (warm_up.end, decay.begin, decay.end) == (1, 1, 2)


@pytest.mark.parametrize('backbone', ['RepVGG-half', 'ResNet-18', 'MobileNetV2'])
def test_folded_is_the_same_network_without_norms(backbone):
    """The truth is the trained model: every branch and every norm by itself."""
    cfg = config_of(HEAD, backbone, 0)
    import_toolbox(cfg)
    trained = randomise_norms(build_model(cfg)).double().eval()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad(), branch_by_branch(trained):
        truth = network_of(trained)(image)

        folded = pareto.folded(trained)
        assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
        assert_close(network_of(folded)(image), truth, rtol=1e-10, atol=1e-10)


# ---- what follows from the figures

def records_of(tmp_path: Path, *rows: tuple) -> Records:
    """Rows of backbone, seed, metric, metric in int8 (or None), ms (the same in every form)."""
    records = Records(tmp_path / 'results.json')
    times = {}
    for backbone, seed, metric, in_int8, ms in rows:
        times[backbone] = {form: [ms, ms - 1, ms + 1] for form in FORMS}
        engines = {FORMS[1]: metric, FORMS[2]: in_int8} if in_int8 else {}
        records.add(Key(HEAD, backbone, seed), steps=10, minutes=1.5, metric=metric, classes={}, parameters=8_300_000,
                    macs=4_600_000_000, **engines)
    records.add_latency(HEAD, 'a test', times)
    return Records(records.path)  # as read again


def test_between_two_points_of_a_curve():
    curve = {10.0: 40.0, 40.0: 46.0}
    assert at_latency(curve, 20.0) == pytest.approx(43.0)  # half the way in log(ms)
    assert at_latency(curve, 10.0) == 40.0
    assert at_latency(curve, 9.9) == 40.0 and at_latency(curve, 40.1) == 46.0  # no farther than times are known
    assert at_latency(curve, 9.7) is at_latency(curve, 41.0) is at_latency({}, 10.0) is None


def test_a_slower_point_that_is_worse_does_not_count():
    assert at_latency({10.0: 43.0, 20.0: 42.0, 40.0: 45.0}, 20.0) == 43.0


def test_two_sittings_at_once_lose_nothing(tmp_path):
    path = tmp_path / 'results.json'
    one, other = Records(path), Records(path)
    one.add(Key(HEAD, 'RepVGG-A0', 0), metric=40.)
    other.add_latency(HEAD, 'a test', {})
    assert len(Records(path).runs) == 1
    one.add(Key(HEAD, 'RepVGG-A0', 0), steps=7)
    found = Records(path)
    assert found.runs[HEAD, 'RepVGG-A0', 0] == dict(head=HEAD, backbone='RepVGG-A0', seed=0, metric=40., steps=7)
    assert found.latency == {HEAD: dict(machine='a test', ms={})}


def test_verdict_at_equal_latency(tmp_path):
    records = records_of(
        tmp_path, ('RepVGG-A0', 0, 40., 39., 10.), ('RepVGG-B0', 0, 46., 42., 40.), ('ResNet-18', 0, 42., 41., 20.),
        ('ResNet-50', 0, 50., 50., 80.))
    verdict = verdict_of(records, HEAD)
    assert 'PyTorch: at the 20.0 ms of ResNet-18 RepVGG is 1.0 points of mIoU above it.' in verdict
    assert 'OpenVINO int8: at the 20.0 ms of ResNet-18 RepVGG is 0.5 points of mIoU below it.' in verdict
    assert 'PyTorch: ResNet-50 at 80.0 ms is not between two RepVGG that were measured.' in verdict


def test_seeds_are_compared_with_their_own_kind(tmp_path):
    records = records_of(
        tmp_path, ('RepVGG-A0', 0, 40., 39., 10.), ('RepVGG-B0', 0, 46., 42., 40.), ('ResNet-18', 0, 42., 41., 20.),
        ('RepVGG-A0', 1, 42., 39., 10.), ('RepVGG-B0', 1, 48., 42., 40.), ('ResNet-18', 1, 46., 41., 20.))
    assert 'PyTorch: at the 20.0 ms of ResNet-18 RepVGG is 0.0 (-1.0 to 1.0) points of mIoU above it' in verdict_of(
        records, HEAD)
    assert curve_of(records, HEAD, 'RepVGG', 'PyTorch') == {10.: 41., 40.: 47.}
    assert curve_of(records, HEAD, 'RepVGG', 'PyTorch', seed=1) == {10.: 42., 40.: 48.}
    row = '| RepVGG-A0 | 2 | 41.0 (40.0 to 42.0) | 39.0 (39.0 to 39.0) | 10.0 (9.0 to 11.0) |'
    assert row in table_of(records, HEAD)


def test_what_is_below_is_told_without_a_second_minus(tmp_path):
    rows = []
    for seed, of_resnet in enumerate((45., 46.)):
        rows += [('RepVGG-A0', seed, 40., 39., 10.), ('RepVGG-B0', seed, 46., 42., 40.),
                 ('ResNet-18', seed, of_resnet, 41., 20.)]
    records = records_of(tmp_path, *rows)
    assert 'PyTorch: at the 20.0 ms of ResNet-18 RepVGG is 2.5 (2.0 to 3.0) points of mIoU below it' in verdict_of(
        records, HEAD)
    assert 'int8: at the 20.0 ms of ResNet-18 RepVGG is 0.5 points' in verdict_of(records, HEAD)  # seed 0 is timed


def test_int8_that_was_refused_is_no_point(tmp_path):
    records = records_of(tmp_path, ('RepVGG-A0', 0, 40., None, 10.))
    assert curve_of(records, HEAD, 'RepVGG', 'OpenVINO int8') == {}


@pytest.mark.parametrize('head', HEADS)
def test_the_page_has_the_tables_and_what_follows(head):
    page = (ROOT / 'docs' / 'backbones.md').read_text()
    records = Records(ROOT / 'benchmarks' / 'pareto.json')
    rows = [line for line in table_of(records, head).splitlines() if line.startswith('|')]
    assert all(row in page for row in rows)
    words = ' '.join(page.split())
    assert all(line in words for line in verdict_of(records, head).splitlines())
    for key, run in records.runs.items():
        if key.head == head:
            assert f'| {key.backbone} | {" | ".join(map(str, run["classes"].values()))} |' in page


def test_the_page_tells_what_is_missing():
    page = ' '.join((ROOT / 'docs' / 'backbones.md').read_text().split())
    measured = {key.backbone for key in Records(ROOT / 'benchmarks' / 'pareto.json').runs}
    not_measured = page.split('## Not measured')[1]
    assert measured and all(backbone in not_measured for backbone in set(BACKBONES) - measured)


# ---- the script

@needs_data
def test_every_step_and_nothing_is_made_twice(tmp_path):
    common = ['--heads', 'pspnet_camvid', '--backbones', 'RepVGG-half', '--results', tmp_path / 'results.json',
              '--work-dirs', tmp_path / 'work', '--plot', tmp_path / 'plot.png']
    run_tool('benchmarks/pareto.py', 'train', *common, '--steps', 2)
    run_tool('benchmarks/pareto.py', 'int8', *common, '--max-drop', 100)
    run_tool('benchmarks/pareto.py', 'latency', *common, '--rounds', 2)
    shown = run_tool('benchmarks/pareto.py', 'show', *common).stdout
    assert '| RepVGG-half | 1 | ' in shown
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')

    run, = json.loads((tmp_path / 'results.json').read_text())['runs']
    assert run['steps'] == 2
    assert len(run['classes']) == 11
    assert {*FORMS[1:], 'tried'} <= set(run)

    content = (tmp_path / 'results.json').read_bytes()
    again = run_tool('benchmarks/pareto.py', 'train', *common, '--steps', 2).stdout
    assert 'already in' in again and 'training' not in again
    run_tool('benchmarks/pareto.py', 'int8', *common, '--max-drop', 100)
    assert (tmp_path / 'results.json').read_bytes() == content
    refused = run_tool('benchmarks/pareto.py', 'train', *common, check=False)
    assert refused.returncode == 1 and 'with 2, now 700 are asked for. Give another file' in refused.stderr


@needs_data
def test_a_training_that_was_stopped_goes_on(tmp_path):
    key = Key('pspnet_camvid', 'RepVGG-half', 0)
    folder = tmp_path / 'work' / key.folder(4)
    folder.mkdir(parents=True)
    config_of(*key, 4).dump(folder / 'config.py')
    run_tool('tools/train.py', folder / 'config.py', '--work-dir', folder, '--amp', '--amp-dtype', 'bfloat16',
             '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    assert not (folder / 'iter_4.pth').exists()

    words = ['train', '--heads', key.head, '--backbones', key.backbone, '--steps', 4,
             '--results', tmp_path / 'results.json', '--work-dirs', tmp_path / 'work']
    run_tool('benchmarks/pareto.py', *words)
    _, second = sorted(folder.glob('*/*.log'))
    assert 'resumed epoch: 0, iter: 2' in second.read_text()
    assert (folder / 'iter_4.pth').exists()
    run, = json.loads((tmp_path / 'results.json').read_text())['runs']
    assert run['steps'] == 4


@needs_data
def test_metric_of_each_class(tmp_path):
    cfg = config_of(HEAD, 'RepVGG-half', 0)
    import_toolbox(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    whole, classes = pareto.points(cfg, pareto.read(cfg, tmp_path / 'weights.pth'))
    assert list(classes) == list(cfg.metainfo.classes)
    assert sum(classes.values()) / len(classes) == pytest.approx(whole, abs=0.06)
    assert max(classes.values()) > 1
