"""`tools/convert_whole.py`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import resource
import runpy
import shlex
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tool_runs import CONFIG, ROOT, assert_refused, derived_config, iterations, metric, run_tool, small_data

from repvgg_mm import compare_models, load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack


def convert(checkpoint: object, out: Path, *flags: str, config: str = CONFIG, **environment: str):
    return run_tool('tools/convert_whole.py', config, checkpoint, '--out', out, '--shape', 64, 64, *flags,
                    check=False, **environment)


def test_conversion_writes_exactly_checkpoint_and_config(converted, checkpoint):
    assert sorted(path.name for path in converted.iterdir()) == ['deploy.pth', 'deploy.py']
    saved = torch.load(converted / 'deploy.pth', weights_only=True)
    assert sorted(saved) == ['meta', 'state_dict']
    assert saved['meta']['form'] == 'deploy'
    assert saved['meta']['arch'] == 'A0'
    assert saved['meta']['source'] == 'iter_4.pth'
    assert len(saved['meta']['source_sha256']) == 64
    assert {'torch', 'mmengine', 'repvgg_mm'} <= set(saved['meta']['versions'])
    assert saved['meta']['dataset_meta']['classes'][:2] == ['background', 'disk']


def test_deploy_config_is_self_contained(converted):
    text = (converted / 'deploy.py').read_text()
    assert '_base_' not in text and 'SyncBN' not in text and 'pretrained' not in text and 'init_cfg' not in text
    assert runpy.run_path(str(converted / 'deploy.py'))['model']['backbone']['deploy'] is True


def test_deploy_form_is_the_fused_averaged_model(converted, checkpoint):
    saved = read_checkpoint(checkpoint)
    averaged, raw = saved['state_dict'], saved['ema_state_dict']
    name = 'backbone.stem.branch_3x3.conv.weight'
    assert not torch.equal(averaged[name], raw[f'module.{name}'])
    training = build_model(Config.fromfile(ROOT / CONFIG))
    load_strictly(training, saved, 'saved')
    deploy = build_model(Config.fromfile(converted / 'deploy.py'))
    load_strictly(deploy, read_checkpoint(converted / 'deploy.pth'), 'deploy.pth')
    errors = compare_models(training, deploy, torch.randn(1, 3, 64, 64))
    assert len(errors) == 5  # four feature maps and the head's output
    assert max(errors.values()) < 1e-5


def test_report_of_the_conversion(converted):
    text = (converted.parent / 'stdout').read_text()
    for part in ('22 RepVGG blocks fused', 'backbone[3]', 'output', 'parameters (million)', 'GFLOPs', 'latency'):
        assert part in text


def test_checkpoint_with_leading_module(checkpoint, shapes, tmp_path):
    state_dict = read_checkpoint(checkpoint)['state_dict']
    torch.save({f'module.{name}': tensor for name, tensor in state_dict.items()}, tmp_path / 'ddp.pth')
    result = convert(tmp_path / 'ddp.pth', tmp_path / 'deploy')
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'deploy' / 'deploy.pth').is_file()


def test_output_folder_is_only_overwritten_on_request(checkpoint, tmp_path):
    (tmp_path / 'deploy.mine.pth').write_text('mine')
    assert_refused(convert(checkpoint, tmp_path), 'new or empty folder', '--overwrite')
    assert [path.name for path in tmp_path.iterdir()] == ['deploy.mine.pth']
    assert convert(checkpoint, tmp_path, '--overwrite').returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['deploy.mine.pth', 'deploy.pth', 'deploy.py']
    assert convert(checkpoint, tmp_path, '--overwrite', '--format', 'safetensors').returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['deploy.mine.pth', 'deploy.py', 'deploy.safetensors']


def damaged(kind: str, checkpoint: Path, converted: Path, folder: Path) -> Path:
    path = folder / f'{kind}.pth'
    if kind == 'truncated':
        path.write_bytes(checkpoint.read_bytes()[:100_000])
    elif kind == 'no checkpoint':
        path.write_text('404 not found')
    elif kind == 'other arch':
        state_dict = read_checkpoint(checkpoint)['state_dict']
        name = 'backbone.stage_3.13.branch_3x3.conv.weight'
        torch.save({'state_dict': {k: v for k, v in state_dict.items() if k != name}}, path)
    elif kind == 'without backbone':
        state_dict = read_checkpoint(checkpoint)['state_dict']
        torch.save({k: v for k, v in state_dict.items() if not k.startswith('backbone.')}, path)
    elif kind == 'deploy form':
        return converted / 'deploy.pth'
    elif kind == 'diverged':
        saved = read_checkpoint(checkpoint)
        saved['state_dict']['backbone.stage_2.1.branch_1x1.norm.running_var'][3] = float('nan')
        torch.save({'state_dict': saved['state_dict']}, path)
    return path


@pytest.mark.parametrize(('kind', 'message'), [
    ('missing', 'is missing'),
    ('truncated', 'cannot be read as a checkpoint'),
    ('no checkpoint', 'cannot be read as a checkpoint'),
    ('other arch', '1 missing (stage_3.13.branch_3x3.conv.weight)'),
    ('without backbone', 'missing (stem.branch_3x3.conv.weight, '),
    ('deploy form', 'is in deploy form already'),
    ('diverged', 'backbone.stage_2.1: Running statistics must be finite'),
])
def test_bad_checkpoints_are_refused_without_output(kind, message, checkpoint, converted, tmp_path):
    path = damaged(kind, checkpoint, converted, tmp_path)
    assert_refused(convert(path, tmp_path / 'deploy'), message)
    assert not (tmp_path / 'deploy').exists()


def test_model_without_repvgg(checkpoint, tmp_path):
    config = derived_config(tmp_path / 'resnet.py', 'model = dict(auxiliary_head=None, decode_head='
                            "dict(in_channels=512), backbone=dict(_delete_=True, type='ResNet', depth=18))")
    model = build_model(Config.fromfile(config))
    torch.save(model.state_dict(), tmp_path / 'resnet.pth')
    assert_refused(convert(tmp_path / 'resnet.pth', tmp_path / 'deploy', config=config), 'contains none')


def test_shape_that_the_model_cannot_take(checkpoint, tmp_path):
    result = run_tool('tools/convert_whole.py', CONFIG, checkpoint, '--out', tmp_path / 'deploy', '--shape', 0, 8,
                      check=False)
    assert_refused(result, '--shape H W')
    assert not (tmp_path / 'deploy').exists()


def test_full_disk_leaves_nothing(checkpoint, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))  # files of 1 MB at most, as on a full disk
    try:
        result = convert(checkpoint, tmp_path / 'deploy')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert_refused(result, 'could not be written')
    assert not (tmp_path / 'deploy').exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(number, checkpoint, tmp_path):
    """Sent while the files are written."""
    program = f"""
import os, signal, sys
import repvgg_mm.deploy.conversion as conversion
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
conversion.write_checkpoint = lambda *arguments: os.kill(os.getpid(), {int(number)})
sys.argv = ['repvgg-mm', 'convert', {CONFIG!r}, {str(checkpoint)!r}, '--out', {str(tmp_path / 'deploy')!r}, '--shape',
            '64', '64']
from repvgg_mm.__main__ import main
main()
"""
    result = run_tool('-c', program, check=False)
    assert result.returncode == 128 + number and 'Traceback' not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('options', 'expected'), [
    (['--cfg-options', 'model.backbone.nonsense=3'], 'Compare it with a file in configs/'),
    (['--latency-seconds', '-1'], '--latency-seconds is a time of 0 or more, got -1'),
    (['--shape', '-5', '20'], 'An image has a pixel or more on each side, got --shape -5 20')])
def test_options_that_nothing_has(options, expected, checkpoint, tmp_path):
    out = tmp_path / 'deploy'
    result = run_tool('tools/convert_whole.py', CONFIG, checkpoint, '--out', out, *options, check=False)
    assert_refused(result, expected)
    assert not out.exists()


def test_latency_is_left_out_and_the_next_command_can_be_pasted(checkpoint, tmp_path):
    out = tmp_path / 'a folder'
    said = convert(checkpoint, out, '--latency-seconds', '0').stdout
    assert 'Latency was not measured' in said and '| latency' not in said
    command = shlex.split(said.split('Next:\n')[1].splitlines()[0])
    assert command == ['repvgg-mm', 'test', str(out / 'deploy.py'), str(out / 'deploy.pth')]


def test_unknown_arch(checkpoint, tmp_path):
    result = convert(checkpoint, tmp_path / 'deploy', '--cfg-options', 'model.backbone.arch=B9')
    assert_refused(result, 'arch must be one of A0, A1', "'B9'")


def test_safetensors(ema_config, checkpoint, shapes, tmp_path):
    out = tmp_path / 'deploy'
    result = run_tool('tools/convert_whole.py', ema_config, checkpoint, '--out', out, '--shape', 64, 64, '--format',
                      'safetensors', '--cfg-options', *small_data(shapes))
    assert f'repvgg-mm test {out / "deploy.py"} {out / "deploy.safetensors"}' in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ['deploy.py', 'deploy.safetensors']
    saved = read_checkpoint(out / 'deploy.safetensors')
    assert saved['meta']['form'] == 'deploy' and saved['meta']['dataset_meta']['classes'][0] == 'background'
    run_tool('tools/test.py', out / 'deploy.py', out / 'deploy.safetensors', '--work-dir', tmp_path / 'test')
    assert 0 <= metric(tmp_path / 'test') <= 100


def test_two_model_call_of_the_original_project(checkpoint, tmp_path):
    cfg = Config.fromfile(ROOT / CONFIG)
    training = build_model(cfg)
    load_strictly(training, read_checkpoint(checkpoint), 'checkpoint')
    cfg.model.backbone.deploy = True
    deploy = whole_model_convert(training, build_model(cfg), tmp_path / 'whole.pth')
    assert max(compare_models(training, deploy, torch.randn(1, 3, 64, 64)).values()) < 1e-5
    load_strictly(build_model(cfg), read_checkpoint(tmp_path / 'whole.pth'), 'whole.pth')


def test_a_config_in_pure_python_style(shapes, tmp_path):
    """Trained, converted and tested: the same metric, and in the deploy form no weights of the training form."""
    config = 'configs/pspnet_repvgg_a0_shapes_pure_python.py'
    options = ['--cfg-options', *small_data(shapes)]
    run_tool('tools/train.py', config, '--work-dir', tmp_path / 'train', *options, *iterations(2))
    weights = tmp_path / 'train' / 'iter_2.pth'
    run_tool('tools/convert_whole.py', config, weights, '--out', tmp_path / 'deploy', '--shape', 64, 64, *options)
    run_tool('tools/test.py', config, weights, '--work-dir', tmp_path / 'before', *options)
    run_tool('tools/test.py', tmp_path / 'deploy/deploy.py', tmp_path / 'deploy/deploy.pth', '--work-dir',
             tmp_path / 'after')
    assert metric(tmp_path / 'before') == metric(tmp_path / 'after')
    assert read_checkpoint(tmp_path / 'deploy/deploy.pth')['meta']['form'] == 'deploy'
