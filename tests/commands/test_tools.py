"""Every tool, run as a process on a small generated dataset: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import resource
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tool_runs import CONFIG, ROOT, assert_refused, derived_config, iterations, metric, run_tool, small_data

from repvgg_mm import UserError, compare_models, load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.demo.shapes import make_shape_folders, make_shapes
from repvgg_mm.openmmlab.data import check_dataset
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=12, num_val=4, size=64)


@pytest.fixture(scope='module')
def ema_config(tmp_path_factory) -> Path:
    return derived_config(tmp_path_factory.mktemp('config') / 'ema_syncbn.py', "custom_hooks = [dict(type='EMAHook')]\n"
                          "model = dict(backbone=dict(norm_cfg=dict(type='SyncBN')))")


@pytest.fixture(scope='module')
def trained(ema_config, shapes, tmp_path_factory) -> Path:
    """A work dir in which EMAHook was on: `state_dict` holds averaged weights, other than the raw ones."""
    work_dir = tmp_path_factory.mktemp('train')
    run_tool('tools/train.py', ema_config, '--work-dir', work_dir, '--cfg-options', *small_data(shapes), *iterations(4))
    return work_dir


@pytest.fixture(scope='module')
def checkpoint(trained) -> Path:
    return trained / 'iter_4.pth'


@pytest.fixture(scope='module')
def converted(ema_config, checkpoint, shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('convert') / 'deploy'
    result = run_tool('tools/convert_whole.py', ema_config, checkpoint, '--out', out, '--cfg-options',
                      *small_data(shapes))
    (out.parent / 'stdout').write_text(result.stdout)
    return out


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


def test_both_forms_have_the_same_metric(converted, checkpoint, shapes, tmp_path):
    run_tool('tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'training', '--cfg-options',
             *small_data(shapes))
    run_tool('tools/test.py', converted / 'deploy.py', converted / 'deploy.pth', '--work-dir', tmp_path / 'deploy',
             '--show-dir', tmp_path / 'pictures')
    assert metric(tmp_path / 'training') == pytest.approx(metric(tmp_path / 'deploy'), abs=0.01)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4


def test_test_time_augmentation_and_predictions(checkpoint, shapes, tmp_path):
    run_tool('tools/test.py', CONFIG, checkpoint, '--tta', '--out', tmp_path / 'masks', '--work-dir', tmp_path / 'work',
             '--cfg-options', *small_data(shapes))
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 4


def test_resumed_run_ends(ema_config, trained, shapes):
    result = run_tool('tools/train.py', ema_config, '--work-dir', trained, '--resume', '--cfg-options',
                      *small_data(shapes), *iterations(6))
    assert 'resumed epoch: 0, iter: 4' in result.stdout + result.stderr
    assert (trained / 'iter_6.pth').is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason='on a GPU --amp is float16')
def test_mixed_precision_on_a_cpu(shapes, tmp_path):
    run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--amp', '--cfg-options', *small_data(shapes),
             *iterations(2))
    assert Config.fromfile(tmp_path / Path(CONFIG).name).optim_wrapper.type == 'BFloat16OptimWrapper'
    weights = read_checkpoint(tmp_path / 'iter_2.pth')['state_dict']
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--amp-dtype', 'float16', check=False)
    assert_refused(result, 'float16 needs a GPU', '--amp alone')


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


@pytest.mark.parametrize(('options', 'expected'), [
    (['--cfg-options', 'model.backbone.nonsense=3'], 'Compare it with a file in configs/'),
    (['--shape', '-5', '20'], 'An image has a pixel or more on each side, got --shape -5 20')])
def test_options_that_nothing_has(options, expected, checkpoint, tmp_path):
    out = tmp_path / 'deploy'
    result = run_tool('tools/convert_whole.py', CONFIG, checkpoint, '--out', out, *options, check=False)
    assert_refused(result, expected)
    assert not out.exists()


def test_an_option_that_the_runner_cannot_build(checkpoint, shapes, tmp_path):
    result = run_tool('tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'work', '--cfg-options',
                      *small_data(shapes), 'model.decode_head.nonsense=1', check=False)
    assert_refused(result, 'nonsense', 'Compare it with a file in configs/')


@pytest.mark.parametrize('dataset', [
    dict(data_root='s3://bucket/shapes', data_prefix=dict(img_path='images')),
    dict(data_root='shapes', ann_file='train.json', backend_args=dict(backend='petrel'))])
def test_data_elsewhere_are_not_looked_for_on_this_machine(dataset):
    check_dataset(Config(dict(train_dataloader=dict(dataset=dataset))), 'train')
    dataset.update(data_root='/absent', backend_args=None)
    with pytest.raises(UserError, match=r'in the folder /absent, where .* missing'):
        check_dataset(Config(dict(train_dataloader=dict(dataset=dataset))), 'train')


def test_the_next_command_can_be_pasted(checkpoint, tmp_path):
    out = tmp_path / 'a folder'
    said = convert(checkpoint, out).stdout
    command = shlex.split(said.split('Next:\n')[1].splitlines()[0])
    assert command == ['python', 'tools/test.py', str(out / 'deploy.py'), str(out / 'deploy.pth')]


@pytest.mark.parametrize(('arguments', 'expected'), [
    (['--size', 0], '1 or more pixels'), (['--seed', -1], 'seed -1'), (['--train', 0], 'got 0 and 80 images'),
    (['--classification', '--val', -2], 'got 200 and -2 images')])
def test_shapes_that_cannot_be_made(arguments, expected, tmp_path):
    assert_refused(run_tool('tools/make_shapes.py', tmp_path / 'new', *arguments, check=False), expected)
    assert_refused(run_tool('tools/make_shapes.py', '/proc/x', check=False), '/proc/x could not be written')
    assert list(tmp_path.iterdir()) == []


def test_shapes_of_a_larger_call_go(tmp_path):
    small, again = tmp_path / 'small', tmp_path / 'again'
    make_shapes(again, num_train=4, num_val=3, size=32, seed=1)
    (again / 'images/train/000123.jpg').write_text('not generated')
    for root in (small, again):
        make_shapes(root, num_train=2, num_val=1, size=48)
    (again / 'images/train/000123.jpg').unlink()
    first, second = ({str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*.*')}
                     for root in (small, again))
    assert first == second and len(first) == 8
    make_shape_folders(tmp_path / 'folders', num_train=3, num_val=2, size=32)
    (tmp_path / 'folders/train/disk/disk_mine.jpg').write_text('not generated')
    make_shape_folders(tmp_path / 'folders', num_train=1, num_val=1, size=32)
    assert len([*(tmp_path / 'folders').rglob('*.jpg')]) == 10 + 1


def test_images_of_others_are_not_removed(tmp_path):
    (tmp_path / 'images/train').mkdir(parents=True)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images/train/0007.jpg').write_text('a photograph')
    (tmp_path / 'annotations/train.json').write_text(json.dumps(dict(
        images=[dict(file_name='0007.jpg')], categories=[dict(id=1, name='cell')])))
    make_shapes(tmp_path, num_train=2, num_val=1, size=32)
    assert (tmp_path / 'images/train/0007.jpg').read_text() == 'a photograph'


def test_unknown_arch(checkpoint, tmp_path):
    result = convert(checkpoint, tmp_path / 'deploy', '--cfg-options', 'model.backbone.arch=B9')
    assert_refused(result, 'arch must be one of A0, A1', "'B9'")


@pytest.mark.parametrize(('config', 'folder'), [
    ('pspnet_repvgg_b2.py', 'data/cityscapes'), ('pspnet_repvgg_a2_ade20k.py', 'data/ade/ADEChallengeData2016'),
    ('pspnet_repvgg_b0_voc12aug.py', 'data/VOCdevkit/VOC2012')])
def test_absent_dataset(config, folder, tmp_path):
    result = run_tool('tools/train.py', f'configs/{config}', '--work-dir', tmp_path, check=False,
                      REPVGG_MM_DATA=str(tmp_path / 'data'))
    assert_refused(result, folder, 'docs/train.md, section "Datasets"')


def test_absent_config_and_base_config(tmp_path):
    assert_refused(run_tool('tools/train.py', 'configs/pspnet.py', check=False), 'configs/pspnet.py is missing')
    assert_refused(run_tool('tools/train.py', 'configs', check=False), 'configs is a folder')
    base = 'configs/_base_/datasets/shapes.py'
    assert_refused(run_tool('tools/train.py', base, check=False), 'A config describes a model')


def test_resume_without_checkpoint(shapes, tmp_path):
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--resume', check=False)
    assert_refused(result, 'goes on from a checkpoint')


def test_the_test_tool_fuses_a_training_form_and_refuses_to_take_a_deploy_form_apart(
    converted, checkpoint, shapes, tmp_path
):
    wrong = run_tool('tools/test.py', CONFIG, converted / 'deploy.pth', '--work-dir', tmp_path, '--cfg-options',
                     *small_data(shapes), check=False)
    assert_refused(wrong, 'cannot be told apart again')
    fused = run_tool('tools/test.py', converted / 'deploy.py', checkpoint, '--work-dir', tmp_path / 'fused')
    assert 'native layout, training form, fused while loading' in fused.stdout
    run_tool('tools/test.py', converted / 'deploy.py', converted / 'deploy.pth', '--work-dir', tmp_path / 'deploy')
    assert metric(tmp_path / 'fused') == metric(tmp_path / 'deploy')


def test_safetensors(ema_config, checkpoint, shapes, tmp_path):
    out = tmp_path / 'deploy'
    result = run_tool('tools/convert_whole.py', ema_config, checkpoint, '--out', out, '--shape', 64, 64, '--format',
                      'safetensors', '--cfg-options', *small_data(shapes))
    assert f'tools/test.py {out / "deploy.py"} {out / "deploy.safetensors"}' in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ['deploy.py', 'deploy.safetensors']
    saved = read_checkpoint(out / 'deploy.safetensors')
    assert saved['meta']['form'] == 'deploy' and saved['meta']['dataset_meta']['classes'][0] == 'background'
    run_tool('tools/test.py', out / 'deploy.py', out / 'deploy.safetensors', '--work-dir', tmp_path / 'test')
    assert 0 <= metric(tmp_path / 'test') <= 100


def test_demo(tmp_path):
    (tmp_path / 'demo' / 'segmentor').mkdir(parents=True)
    (tmp_path / 'demo' / 'thesis.txt').write_text('not of the demo')
    result = run_tool('tools/demo.py', '--out', tmp_path / 'demo', '--iters', 4)
    assert '| segmentor: mIoU' in result.stdout and '| detector: bbox mAP' in result.stdout
    assert {path.name for path in (tmp_path / 'demo').iterdir()} == {
        'thesis.txt', 'segmentor', 'detector', 'segmentor_predictions.png', 'detector_predictions.png', 'training.png',
        'latency.png'}


def test_two_model_call_of_the_original_project(checkpoint, tmp_path):
    cfg = Config.fromfile(ROOT / CONFIG)
    training = build_model(cfg)
    load_strictly(training, read_checkpoint(checkpoint), 'checkpoint')
    cfg.model.backbone.deploy = True
    deploy = whole_model_convert(training, build_model(cfg), tmp_path / 'whole.pth')
    assert max(compare_models(training, deploy, torch.randn(1, 3, 64, 64)).values()) < 1e-5
    load_strictly(build_model(cfg), read_checkpoint(tmp_path / 'whole.pth'), 'whole.pth')
