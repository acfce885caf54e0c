"""Every command and every program of README and the pages runs, from top to bottom, on a small model and few images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import detector
from helpers import TINY, randomise_norms
from mmengine.config import Config
from pages import CODE_BLOCK, TEXTS, commands_in, python_snippets
from tool_runs import derived_config, run_tool

from repvgg_mm import RepVGG
from repvgg_mm.demo.shapes import CLASSES, make_shapes
from repvgg_mm.files.checkpoint import write_checkpoint
from repvgg_mm.openmmlab.model import build_model

WALKED = ('README.md', 'docs/train.md', 'docs/export.md', 'docs/predict.md', 'docs/performance.md', 'docs/weights.md')
NOT_RUN = {
    'tools/train.py configs/pspnet_repvgg_b2.py': 'no Cityscapes; tests/test_configs.py builds it',
    'tools/train.py configs/pspnet_repvgg_b2.py --launcher slurm': 'tests/programs/launchers.py runs it on shapes',
    'tools/train.py configs/pspnet_repvgg_b2.py --launcher mpi': 'tests/programs/launchers.py runs it on shapes',
    'tools/train.py configs/classify_repvgg_a0_imagenet.py': 'no ImageNet; tests/test_classification.py on shapes',
    'tools/convert_weights.py RepVGGplus-L2pse.pth l2pse.pth -a RepVGGplus-L2pse': 'half a gigabyte',
}
LESS_WORK = {  # added to a command, so that it takes seconds
    'int8': '--calib-images 4 --max-drop 100',
    'make_shapes': '--train 2 --val 1',
    'benchmark': '--rounds 2',
}


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """A folder with everything that the pages' placeholders stand for."""
    place = tmp_path_factory.mktemp('place')
    shapes = make_shapes(place / 'shapes', num_train=4, num_val=2, size=96)
    loaders = {}
    for split in ('train', 'val', 'test'):
        loaders[f'{split}_dataloader'] = dict(
            num_workers=0, persistent_workers=False, dataset=dict(data_root=str(shapes)))
    loaders['train_dataloader']['batch_size'] = 2
    model = dict(
        backbone=dict(arch=dict(TINY, _delete_=True)),
        decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
    settings = dict(model=model, train_cfg=dict(max_iters=2, val_interval=2), **loaders)
    text = '\n'.join(f'{name} = {value}' for name, value in settings.items())
    for name in ('config.py', 'other.py'):
        derived_config(place / name, text)

    torch.manual_seed(0)
    built = randomise_norms(build_model(Config.fromfile(place / 'config.py')))
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), place / 'checkpoint.pth')
    run_tool('tools/convert_whole.py', place / 'config.py', place / 'checkpoint.pth', '--out', place / 'deploy')
    return place


@pytest.fixture(scope='module')
def weights(place) -> None:
    """Files of a classifier's backbone under the names they are published with."""
    backbone = randomise_norms(RepVGG('A0')).state_dict()
    for name in ('RepVGG-A0-train.pth', 'model.safetensors'):
        write_checkpoint(place / name, dict(state_dict=backbone))


def filled_in(command: str, place: Path, folder: Path) -> list[str]:
    """The words of a command, its placeholders replaced."""
    config, checkpoint = str(place / 'config.py'), str(place / 'checkpoint.pth')
    images = str(place / 'shapes/images/val')
    values = {
        'work_dirs/pspnet_repvgg_a0_shapes/iter_400.pth': checkpoint, 'CHECKPOINT': checkpoint,
        'configs/pspnet_repvgg_a0_shapes.py': config, 'configs/pspnet_repvgg_b1g2_fast.py': config,
        'configs/pspnet_repvgg_a0.py': config, '384': '96',
        'OTHER_CONFIG': str(place / 'other.py'), 'my_pspnet_r50.py': str(place / 'other.py'), 'CONFIG': config,
        'data/shapes/images/val': images, 'IMAGES': images, '713': '96', '512': '96',
        'RepVGG-A0-train.pth': str(place / 'RepVGG-A0-train.pth'),
        'model.safetensors': str(place / 'model.safetensors'),
        'work_dirs/deploy/deploy.py': str(place / 'deploy/deploy.py'),
        'work_dirs/deploy/deploy.pth': str(place / 'deploy/deploy.pth'),
    }
    written = ('work_dirs/', 'data/', 'DIR', 'ENGINE', 'INT8', 'PICTURES', 'report.html', 'speed.png', 'a0')
    words = []
    for word in shlex.split(command, comments=True):
        if word in values:
            word = values[word]
        elif word.startswith(written):
            word = str(folder / word)
        words.append(word)

    name = Path(words[0]).stem
    if name in ('train', 'test'):
        words += ['--work-dir', str(folder / 'work')]
    for key, more in LESS_WORK.items():
        if key in words or key == name:
            words += shlex.split(more)
    return words


def whole_commands(page: str) -> list[str]:
    """Those with arguments, each once, without those that only name what cannot run here."""
    commands = []
    for command in commands_in(TEXTS[page]):
        command = shlex.join(shlex.split(command, comments=True))
        if command.startswith('tools/') and ' ' in command:
            commands.append(command)
    return list(dict.fromkeys(commands))


@pytest.mark.parametrize('page', WALKED)
def test_the_commands_of_a_page_run_in_their_order(page, place, weights, tmp_path):
    commands = [command for command in whole_commands(page) if command not in NOT_RUN]
    assert commands
    for command in commands:
        run_tool(*filled_in(command, place, tmp_path))


def test_no_page_has_a_command_that_is_not_run():
    walked = {command for page in WALKED for command in whole_commands(page)}
    everywhere = {command for page in TEXTS for command in whole_commands(page)}
    assert everywhere - walked == set()
    assert set(NOT_RUN) <= walked


def shape_of(output: str) -> list[str]:
    """Lines of an output without its numbers, the folders it names and the widths of its columns."""
    output = re.sub(r'\S*/(deploy\.\w+)', r'\1', output)
    output = re.sub(r'\d[\d.]*(?:e-\d+)?', '#', output)
    return [re.sub(r'[ -]{2,}', ' ', line).strip() for line in output.splitlines()]


def test_readme_quotes_what_a_conversion_prints(place, tmp_path):
    quoted = next(code for _, code in CODE_BLOCK.findall(TEXTS['README.md']) if 'blocks fused' in code)
    printed = run_tool('tools/convert_whole.py', place / 'config.py', place / 'checkpoint.pth', '--out',
                       tmp_path / 'deploy').stdout
    assert shape_of(printed)[-len(shape_of(quoted)):] == shape_of(quoted)


def test_predicting_in_python(place, monkeypatch):
    monkeypatch.chdir(place / 'deploy')
    (place / 'deploy/photos').symlink_to(place / 'shapes/images/val')
    names = {}
    exec(python_snippets(TEXTS['docs/predict.md'])[0], names)
    assert len(names['samples']) == len(names['pictures']) == 2
    assert names['samples'][0].pred_sem_seg.data.shape == (1, 96, 96)


def test_an_engine_and_its_detections_in_python(tmp_path, monkeypatch):
    model, cfg = detector('RetinaNet')
    cfg.dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'checkpoint.pth')
    run_tool('tools/export.py', tmp_path / 'config.py', tmp_path / 'checkpoint.pth', '--out', tmp_path / 'DIR',
             '--shape', 96, 96)
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).standard_normal((1, 3, 96, 96), dtype=np.float32)
    alone, with_boxes = (code for code in python_snippets(TEXTS['docs/export.md']) if 'import Engine' in code)
    first, second = dict(images=images), dict(images=images)
    exec(alone, first)
    exec(with_boxes, second)
    np.testing.assert_array_equal(first['outputs']['boxes'], second['outputs']['boxes'])
    found, = second['detections']
    assert found.boxes.shape[1] == 4 and len(found.boxes) == len(found.scores) == len(found.labels) > 0
