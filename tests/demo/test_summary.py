"""The table at the end of the demo, from folders like those that its tools leave."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from reports import config_of, write_checkpoint_of, write_config

from repvgg_mm.convert.measure import count_parameters
from repvgg_mm.demo.summary import summarise
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import Conversion, convert_checkpoint, write_deploy

pytestmark = pytest.mark.stack
KEYS = dict(segmentor=('decode.loss_ce', 'aux.loss_ce', 'decode.acc_seg'), detector=('loss_cls', 'loss_bbox'))


def write_results(task: str, folder: Path, shapes: Path, metrics: dict[str, dict]) -> tuple[Path, Conversion]:
    """What train, test, convert and test leave in `folder`; returns the config."""
    folder.mkdir(parents=True)
    path = write_config(folder, task)
    cfg = config_of(path, shapes)
    checkpoint = write_checkpoint_of(path)
    conversion = convert_checkpoint(cfg, Checkpoint.read(checkpoint), (64, 64))
    cfg.dump(path)
    write_deploy(conversion, folder / 'deploy')

    log = folder / 'train' / '20250101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps(dict(loss=1, step=1, **dict.fromkeys(KEYS[task], 1))))
    checkpoint.rename(folder / 'train' / 'iter_1.pth')
    (folder / 'train' / 'last_checkpoint').write_text(str(folder / 'train' / 'iter_1.pth'))
    for name, found in metrics.items():
        file = folder / name / '20250101_000000' / '20250101_000000.json'
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(found))
    return path, conversion


def test_the_table_and_the_pictures(shapes, tmp_path):
    metrics = dict(
        segmentor={'test_training_form': dict(mIoU=87.004), 'test_deploy_form': dict(mIoU=86.5)},
        detector={'test_training_form': {'coco/bbox_mAP': 0.707}, 'test_deploy_form': {}})  # nothing was found
    configs, conversions = {}, {}
    for task, found in metrics.items():
        configs[task], conversions[task] = write_results(task, tmp_path / task, shapes, found)
    *_, table = summarise(configs, tmp_path).partition('\n')
    head, rule, *lines, last = table.splitlines()
    assert [cell.strip() for cell in head.split('|')] == ['', '', 'training form', 'deploy form', '']
    assert len({len(line) for line in (head, rule, *lines)}) == 1

    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    names = [row[0] for row in rows]
    costs = ['latency, branch by branch (ms)', 'latency, as evaluated (ms)', 'parameters (million)']
    assert names == ['segmentor: mIoU', *costs, 'detector: bbox mAP', *costs]
    assert rows[0][1:] == ['87.00', '86.50'] and rows[4][1:] == ['70.70', 'nan']
    for first, task in ((0, 'segmentor'), (4, 'detector')):
        models = (conversions[task].trained, conversions[task].deploy)
        assert rows[first + 3][1:] == [f'{count_parameters(model) / 1e6:.2f}' for model in models]
        for row, filled in zip(rows[first + 1:first + 3], (1, 2)):
            assert [bool(re.fullmatch(r'\d+\.\d', cell)) for cell in row[1:]] == [True, filled == 2]

    pictures = ['detector_predictions.png', 'latency.png', 'segmentor_predictions.png', 'training.png']
    assert last == f'Pictures: {", ".join(str(tmp_path / name) for name in pictures)}'
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
