"""The benchmark tool measures what it says, on one machine's CPU; times themselves are not tested."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import TINY, pspnet, pspnet_config
from mmengine.config import Config
from tool_runs import run_tool
from torch import nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.benchmark.benchmark import WORK, Setting, benchmark, build_forms, peak_bytes, saved_bytes
from repvgg_mm.benchmark.output import table


def test_every_kind_of_work_and_its_figures():
    model = pspnet(TINY)
    models = {'deploy form': whole_model_convert(model), 'training form': model}
    setting = Setting(torch.randn(2, 3, 64, 64), rounds=2)
    rows = benchmark(models, setting, WORK)
    assert [(row.model, row.work) for row in rows] == [(name, work) for work in WORK for name in models]
    assert all(row.lower_ms <= row.median_ms <= row.upper_ms and row.median_ms > 0 for row in rows)
    assert all((row.saved_mib is None) == (row.work == 'forward') for row in rows)
    deploy, training = rows[:2]
    assert deploy.million_parameters < training.million_parameters and deploy.gflops < training.gflops
    assert all(p.grad is not None for p in models['deploy form'].decode_head.parameters())
    assert '| training form | norm_eval step |' in table(rows)
    assert setting.conditions()['shape'] == '(2, 3, 64, 64)'


def test_saved_bytes_of_a_convolution_are_those_of_its_input():
    assert saved_bytes(nn.Conv2d(3, 4, 3, bias=False), torch.randn(2, 3, 8, 8)) == 2 * 3 * 8 * 8 * 4


def test_peak_is_what_is_alive_at_once():
    conv, x = nn.Conv2d(3, 4, 1, bias=False), torch.randn(2, 3, 8, 8)
    output, kernel = 2 * 4 * 8 * 8 * 4, 4 * 3 * 4
    assert peak_bytes(conv, lambda: conv(x)) == output
    assert peak_bytes(conv, lambda: conv(conv(x)[:, :3])) == 2 * output
    gradient = torch.ones(2, 4, 8, 8)
    assert peak_bytes(conv, lambda: conv(x).backward(gradient)) == output + kernel


def test_autocast_keeps_half_as_much():
    conv, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), torch.randn(2, 3, 64, 64)
    assert saved_bytes(conv, x, torch.bfloat16) < 0.6 * saved_bytes(conv, x)


def test_a_compiled_step_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r'--compile measures steps on a GPU only.*this is cpu\. Measure'):
        benchmark({}, Setting(torch.randn(1, 3, 8, 8), compile=True), ['training step'])


def test_tool_writes_figures_and_a_picture(tmp_path):
    result = run_tool('tools/benchmark.py', 'configs/pspnet_repvgg_a0_shapes.py', '--shape', '64', '64',
                      '--rounds', '2', '--json', tmp_path / 'figures.json', '--plot', tmp_path / 'picture.png')
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert [row['model'] for row in figures['rows']] == [
        f'pspnet_repvgg_a0_shapes, {form} form' for form in ('deploy', 'training')]
    assert figures['conditions']['torch'] == torch.__version__ and 'dtype float32' in result.stdout
    assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')


def test_a_deploy_form_is_one_row_and_equal_names_are_told_apart(tmp_path):
    paths = [tmp_path / folder / 'deploy.py' for folder in ('a', 'b')]
    for path, deploy in zip(paths, (True, False)):
        path.parent.mkdir()
        path.write_text(Config(dict(model=pspnet_config(TINY, deploy=deploy), default_scope='mmseg')).pretty_text)
    models = build_forms([str(path) for path in paths])
    assert list(models) == [f'{paths[0]}, deploy form', f'{paths[1]}, deploy form', f'{paths[1]}, training form']
    counts = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    assert counts[0] == counts[1] < counts[2]


@pytest.mark.parametrize('arguments, message', [
    (['nothing.py'], 'A config is a Python file, and nothing.py is missing'),
    (['configs/_base_/default_runtime.py'], 'A config describes a model'),
    (['configs/pspnet_repvgg_a0.py', '--device', 'nowhere'], 'A device is one that torch can use here, and nowhere is'),
    (['configs/pspnet_repvgg_a0.py', '--shape', '-1', '2'], 'An image has a pixel or more on each side'),
    (['configs/pspnet_repvgg_a0.py', '--plot', 'a.xyz'], '--plot names a file in .png, .svg, .pdf, and a.xyz is none'),
    (['configs/pspnet_repvgg_a0.py', '--json', '/proc/a.json'], '/proc/a.json could not be written'),
    (['configs/pspnet_repvgg_a0_shapes.py', '--shape', '64', '64', '--work', 'training step'],
     'cannot do a training step with (1, 3, 64, 64): Expected more than 1 value per channel'),
    (['configs/pspnet_repvgg_a0.py', '--rounds', '1'], 'A median needs two rounds or more')])
def test_mistakes_are_explained(arguments, message):
    result = run_tool('tools/benchmark.py', *arguments, check=False)
    assert result.returncode != 0 and message in result.stderr and 'Traceback' not in result.stderr
