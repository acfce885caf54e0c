"""The built wheel as a user has it: added to an environment, used from an empty folder, by its commands and by mim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from tool_runs import ROOT, iterations

from repvgg_mm.environment import torch_at_least
from repvgg_mm.export.target import OLDEST_TORCH

pytestmark = pytest.mark.stack

FEW = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']


def run(*command: object, folder: Path) -> str:
    """Standard output of a command that ends well, run in `folder`."""
    environment = {'OMP_NUM_THREADS': '1', **os.environ}
    result = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Made of a copy of what a clone holds; the copy must hold the same afterwards."""
    folder = tmp_path_factory.mktemp('wheel')
    run('git', 'clone', '--quiet', ROOT, folder / 'clone', folder=folder)
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', folder,
        folder / 'clone', folder=folder)
    assert run('git', 'status', '--short', folder=folder / 'clone') == ''
    assert not [path for path in (folder / 'clone').rglob('*') if path.is_symlink()]
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def scripts(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the packages of this one, and the wheel."""
    environment = tmp_path_factory.mktemp('environment')
    run(sys.executable, '-m', 'venv', '--without-pip', environment, folder=environment)
    packages, = environment.glob('lib/python*/site-packages')
    (packages / 'of_tests.pth').write_text(f'import site; site.addsitedir({sysconfig.get_path("purelib")!r})\n')
    run(sys.executable, '-m', 'pip', '--python', environment / 'bin' / 'python', 'install', '--quiet', '--no-deps',
        '--ignore-installed', wheel, folder=environment)
    return environment / 'bin'


def test_everything_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').rglob('*.py')}
    assert configs and {f'repvgg_mm/.mim/configs/repvgg/{name}' for name in configs} <= names
    tools = {path.name for path in (ROOT / 'tools').glob('*')} - {'__pycache__'}
    assert {f'repvgg_mm/.mim/tools/{name}' for name in (*tools, 'convert.py')} <= names
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'repvgg_mm').rglob('*.py')}
    assert {*files, 'repvgg_mm/py.typed', 'repvgg_mm/report/page.html.j2', 'repvgg_mm/.mim/model-index.yml'} <= names


def test_installing_changes_nothing_else(wheel):
    """What pip would do in this environment, to which nothing but this package may be added."""
    would = run(sys.executable, '-m', 'pip', 'install', '--dry-run', '--quiet', '--report', '-', wheel,
                folder=wheel.parent)
    assert set(names_in(would)) <= {'repvgg_mm'}


def names_in(report: str) -> list[str]:
    """Of the packages that pip would install; its versions write the name of ours with a hyphen or as it is."""
    return [part['metadata']['name'].replace('-', '_') for part in json.loads(report)['install']]


def test_the_metafile_names_every_config():
    listed = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())['Models']
    assert sorted(model['Config'] for model in listed) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').glob('*.py'))
    for model in listed:
        text = (ROOT / model['Config']).read_text()
        for results in model['Results']:
            for value in results['Metrics'].values():
                assert f'{value:.2f}' in text or str(value) in text, model['Name']


def test_from_an_empty_folder(scripts, tmp_path):
    """Train a config of one's own, convert, test what was written: the commands in their order."""
    (tmp_path / 'mine.py').write_text("_base_ = 'repvgg_mm::repvgg/pspnet_repvgg_a0_shapes.py'\n")
    program = scripts / 'repvgg-mm'
    run(program, 'make-shapes', 'data/shapes', '--train', 4, '--val', 2, folder=tmp_path)
    run(program, 'train', 'mine.py', '--work-dir', 'work', '--cfg-options', *FEW, *iterations(2), folder=tmp_path)
    said = run(program, 'convert', 'mine.py', 'work/iter_2.pth', '--out', 'deploy', '--shape', 96, 96, folder=tmp_path)
    words = said.split('Next:\n')[1].split()
    metrics = run(*words, folder=tmp_path)
    assert 'mIoU' in metrics
    export = [program, 'export', 'deploy/deploy.py', 'deploy/deploy.pth', '--out', 'engine', '--shape', 96, 96]
    if torch_at_least(OLDEST_TORCH):
        run(*export, folder=tmp_path)
        assert 'mIoU' in run(program, 'test', 'mine.py', 'engine/engine.onnx', folder=tmp_path)
    else:
        refused = subprocess.run([str(word) for word in export], cwd=tmp_path, capture_output=True, text=True)
        assert refused.returncode == 1 and f'exporter of torch {OLDEST_TORCH} or newer' in refused.stderr
        assert not (tmp_path / 'engine').exists()
    assert 'mIoU' in run(scripts / 'python', '-m', 'repvgg_mm', 'test', 'pspnet_repvgg_a0_shapes.py', 'work/iter_2.pth',
                         folder=tmp_path)


def test_mmengines_hub_builds_the_configs(scripts, tmp_path):
    program = """
import repvgg_mm
from mmengine.hub import get_config, get_model
config = get_config('repvgg_mm::repvgg/pspnet_repvgg_b2.py')
models = [get_model(f'repvgg_mm::repvgg/{name}_repvgg_a0_shapes.py') for name in ('pspnet', 'retinanet')]
models += [get_model('repvgg_mm::repvgg/pspnet_repvgg_a0_shapes_pure_python.py')]
print(repvgg_mm.__file__, config.model.backbone.arch, *(type(model).__module__.split('.')[0] for model in models))
"""
    *_, last = run(scripts / 'python', '-c', program, folder=tmp_path).splitlines()  # mmengine logs before it
    where, arch, *toolboxes = last.split()
    assert where.startswith(str(scripts.parent)) and arch == 'B2'
    assert toolboxes == ['mmseg', 'mmdet', 'mmseg']


def test_a_detector_from_an_empty_folder(scripts, tmp_path):
    (tmp_path / 'mine.py').write_text("""_base_ = 'repvgg_mm::repvgg/retinanet_repvgg_a0_shapes.py'
model = dict(test_cfg=dict(score_thr=0.001))  # after two steps no box is likely
""")
    program = scripts / 'repvgg-mm'
    run(program, 'make-shapes', 'data/shapes', '--train', 4, '--val', 2, folder=tmp_path)
    run(program, 'train', 'mine.py', '--work-dir', 'work', '--cfg-options', *FEW, *iterations(2), folder=tmp_path)
    run(program, 'convert', 'mine.py', 'work/iter_2.pth', '--out', 'deploy', '--shape', 96, 96, folder=tmp_path)
    assert 'bbox' in run(program, 'test', 'deploy/deploy.py', 'deploy/deploy.pth', folder=tmp_path)
    if torch_at_least(OLDEST_TORCH):
        run(program, 'export', 'deploy/deploy.py', 'deploy/deploy.pth', '--out', 'engine', '--shape', 96, 96,
            folder=tmp_path)
        assert 'bbox' in run(program, 'test', 'mine.py', 'engine/engine.onnx', folder=tmp_path)


def test_the_tools_of_mim(scripts, tmp_path):
    """`mim run repvgg_mm convert` runs this file."""
    tool, = scripts.parent.glob('lib/python*/site-packages/repvgg_mm/.mim/tools/convert.py')
    assert run(scripts / 'python', tool, '--help', folder=tmp_path).startswith('usage: repvgg-mm convert')
