"""What a conversion writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import pspnet_config, randomise_norms
from mmengine.config import Config

from repvgg_mm import UserError, load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.convert.blocks import has_branches
from repvgg_mm.deploy import conversion as conversion_module
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.deploy.config import deploy_config
from repvgg_mm.deploy.conversion import convert_checkpoint, in_channels, write_deploy
from repvgg_mm.export.export import load_deploy
from repvgg_mm.export.target import Target
from repvgg_mm.files.atomic import sha256_of
from repvgg_mm.openmmlab.config import copy_of, read_config
from repvgg_mm.openmmlab.model import build_model, replace_sync_bn

pytestmark = pytest.mark.stack


@pytest.fixture
def cfg() -> Config:
    torch.manual_seed(0)  # of the models that are built from it
    return Config(dict(model=pspnet_config('A0'), default_scope='mmseg'))


def save(model: torch.nn.Module, folder: Path) -> Checkpoint:
    torch.save(model.state_dict(), folder / 'trained.pth')
    return Checkpoint.read(folder / 'trained.pth')


def test_a_deploy_config_and_a_training_checkpoint_are_proven_all_the_same(cfg, tmp_path):
    checkpoint = save(randomise_norms(build_model(cfg)), tmp_path)
    conversion = convert_checkpoint(deploy_config(cfg), checkpoint, (64, 64))
    assert has_branches(conversion.trained) and not has_branches(conversion.deploy)
    assert 0 < max(conversion.errors.values()) <= 1e-5  # of two networks, not of one with itself
    rebuilt = build_model(conversion.config)
    rebuilt.load_state_dict(conversion.deploy.state_dict())
    assert not has_branches(rebuilt)


@pytest.mark.parametrize('form', ['training', 'deploy'])
def test_the_given_config_is_not_changed(cfg, tmp_path, form):
    cfg.model.backbone.norm_cfg = dict(type='SyncBN')
    given = deploy_config(cfg) if form == 'deploy' else cfg
    before = given.pretty_text
    conversion = convert_checkpoint(given, save(randomise_norms(build_model(without_sync_bn(cfg))), tmp_path), (64, 64))
    write_deploy(conversion, tmp_path / 'deploy')
    assert given.pretty_text == before
    conversion.config.model.backbone.arch = 'B3'
    assert given.pretty_text == before  # nor does it share a part with the result


def without_sync_bn(cfg: Config) -> Config:
    """The same config without SyncBN, which a CPU does not run."""
    plain = copy_of(cfg)
    replace_sync_bn(plain)
    return plain


def test_a_deploy_form_is_not_converted_again(cfg, tmp_path):
    model = randomise_norms(build_model(cfg))
    with pytest.raises(UserError, match=r'starts from the training form, and .*trained\.pth is in deploy form already'):
        convert_checkpoint(cfg, save(whole_model_convert(model), tmp_path), (64, 64))


@pytest.mark.parametrize('shape', [(0, 8), (8, -1)])
def test_a_shape_without_a_pixel(cfg, tmp_path, shape):
    with pytest.raises(UserError, match='a pixel or more on each side'):
        convert_checkpoint(cfg, save(build_model(cfg), tmp_path), shape)


def test_the_meta_of_the_deploy_form(cfg, tmp_path):
    conversion = convert_checkpoint(cfg, save(randomise_norms(build_model(cfg)), tmp_path), (64, 64))
    weights = write_deploy(conversion, tmp_path / 'deploy')
    meta = read_checkpoint(weights)['meta']
    assert sorted(path.name for path in weights.parent.iterdir()) == ['deploy.pth', 'deploy.py']
    assert meta['form'] == 'deploy' and meta['arch'] == 'A0' and meta['source'] == 'trained.pth'
    assert meta['source_sha256'] == sha256_of(tmp_path / 'trained.pth')
    assert meta['worst_relative_error'] == max(conversion.errors.values())
    assert set(meta['versions']) == {'repvgg_mm', 'torch', 'mmengine'} and 'dataset_meta' not in meta


def test_both_files_are_the_new_ones_or_nothing_has_changed(cfg, tmp_path, monkeypatch):
    conversion = convert_checkpoint(cfg, save(randomise_norms(build_model(cfg)), tmp_path), (64, 64))

    def full(path: Path, checkpoint: dict) -> None:
        raise UserError(f'{path} could not be written')

    monkeypatch.setattr(conversion_module, 'write_checkpoint', full)
    with pytest.raises(UserError, match='could not be written'):
        write_deploy(conversion, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'deploy.py').write_text('old')
    with pytest.raises(UserError, match='could not be written'):
        write_deploy(conversion, tmp_path / 'old')
    assert [path.name for path in (tmp_path / 'old').iterdir()] == ['deploy.py']
    assert (tmp_path / 'old' / 'deploy.py').read_text() == 'old'


def test_the_channels_of_the_images_are_those_of_the_first_larger_convolution():
    inside = torch.nn.Sequential(torch.nn.Conv2d(64, 4, 1), torch.nn.Conv2d(5, 8, 3), torch.nn.Conv2d(8, 8, 3))
    assert in_channels(inside) == 5
    with pytest.raises(UserError, match=r'Linear has none\. Give the config of a segmentor or detector'):
        in_channels(torch.nn.Linear(1, 1))


@pytest.mark.parametrize('imported', ['repvgg_mm', 'repvgg_mm.backbone'])
def test_a_config_in_pure_python_style(imported, tmp_path):
    (tmp_path / 'config.py').write_text(f"""
from {imported} import RepVGG
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor

default_scope = 'mmseg'
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(64, 64)),
    backbone=dict(type=RepVGG, arch='A0'),
    decode_head=dict(type=FCNHead, in_channels=1280, in_index=3, channels=8, num_classes=3, num_convs=1),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
""")
    config = read_config(tmp_path / 'config.py')
    conversion = convert_checkpoint(config, save(randomise_norms(build_model(config)), tmp_path))
    assert conversion.meta['arch'] == 'A0'
    weights = write_deploy(conversion, tmp_path / 'deploy')
    model = build_model(read_config(tmp_path / 'deploy' / 'deploy.py'))
    load_strictly(model, read_checkpoint(weights), 'deploy.pth')
    assert not has_branches(model)


def test_a_mix_of_two_conversions_is_refused(cfg, tmp_path):
    """As a kill between the two files leaves it."""
    for name, gain in (('old', 0), ('new', 1)):
        model = build_model(cfg)
        model.backbone.stem.branch_3x3.norm.weight.data += gain
        write_deploy(convert_checkpoint(cfg, save(model, tmp_path), (64, 64)), tmp_path / name)
    old, new = (read_config(tmp_path / name / 'deploy.py') for name in ('old', 'new'))
    weights = Checkpoint.read(tmp_path / 'new' / 'deploy.pth')
    assert load_model(new, weights) is not None

    message = r'belong to one conversion, and .*new/deploy\.pth has deploy_pair \w{16}, the config \w{16}\. Use the two'
    for use in (load_model, export_model):
        with pytest.raises(UserError, match=message):
            use(old, weights)
    edited = copy_of(new)
    edited.work_dir = 'elsewhere'
    assert load_model(edited, weights) is not None
    old.pop('deploy_pair')  # written before there were pairs
    assert load_model(old, weights) is not None


def export_model(cfg: Config, checkpoint: Checkpoint) -> None:
    load_deploy(cfg, checkpoint, Target('onnx', 'fp32', (64, 64)))
