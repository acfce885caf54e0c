"""A checkpoint is read once and hashed once, and everything after it works from that object."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, assert_same_state, backbone, pspnet, pspnet_config
from mmengine.config import Config
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.deploy import checkpoint as checkpoint_module
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.deploy.conversion import convert_checkpoint, write_deploy
from repvgg_mm.export.export import load_deploy
from repvgg_mm.export.target import Target
from repvgg_mm.files import checkpoint as checkpoint_files

pytestmark = pytest.mark.stack


@pytest.fixture
def cfg() -> Config:
    return Config(dict(model=pspnet_config(), default_scope='mmseg'))


@pytest.fixture
def path(tmp_path) -> Path:
    meta = dict(epoch=3, dataset_meta=dict(classes=('a', 'b', 'c'), palette=np.eye(3, dtype=np.uint8), other=1))
    torch.save(dict(meta=meta, state_dict=pspnet().state_dict()), tmp_path / 'trained.pth')
    return tmp_path / 'trained.pth'


def test_what_is_known_of_a_file(path):
    found = Checkpoint.read(path)
    assert found.source == str(path) and found.name == 'trained.pth' and found.form == 'training'
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.content['meta']['epoch'] == 3
    torch.testing.assert_close(found.weights, dict(pspnet().state_dict()), rtol=0, atol=0)
    assert found.dataset_meta == dict(classes=['a', 'b', 'c'], palette=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize('meta', [None, {}, dict(dataset_meta=None), dict(dataset_meta=dict(palette=[[1, 2, 3]]))])
def test_a_file_that_names_no_classes(tmp_path, meta):
    torch.save(dict(meta=meta, state_dict=dict(weight=torch.ones(1))), tmp_path / 'a.pth')
    found = Checkpoint.read(tmp_path / 'a.pth')
    assert found.dataset_meta == {} and found.form is None


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'backbone.'])
def test_the_form_is_told_from_the_names(tmp_path, prefix):
    model = backbone(TINY)
    for form, source in (('training', model), ('deploy', whole_model_convert(model))):
        torch.save({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / f'{form}.pth')
        assert Checkpoint.read(tmp_path / f'{form}.pth').form == form
    names = set(model.state_dict()) if prefix != 'backbone.' else {prefix + name for name in model.state_dict()}
    assert set(Checkpoint.read(tmp_path / 'training.pth').weights) == names  # wrappers' prefixes are gone


def test_the_file_is_read_once_and_hashed_once(path, cfg, monkeypatch):
    """Counted where bytes are read; and after reading the file is not needed any more."""
    counts = Counter()

    def counted(module: object, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: object) -> object:
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(checkpoint_files, '_read_file')
    counted(checkpoint_module, 'sha256_of')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    checkpoint = Checkpoint.read(path)
    path.unlink()
    conversion = convert_checkpoint(cfg, checkpoint, (64, 64))
    written = write_deploy(conversion, path.parent / 'deploy')
    assert counts == dict(_read_file=1, sha256_of=1)
    assert conversion.meta['source'] == 'trained.pth' and conversion.meta['source_sha256'] == digest
    assert conversion.meta['dataset_meta'] == checkpoint.dataset_meta
    assert Checkpoint.read(written).form == 'deploy'


def test_converting_twice_from_one_checkpoint_gives_the_same(path, cfg):
    checkpoint = Checkpoint.read(path)
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    first = convert_checkpoint(cfg, checkpoint, (64, 64))
    second = convert_checkpoint(cfg, checkpoint, (64, 64))
    assert_same_state(second.deploy, dict(first.deploy.state_dict()))
    torch.testing.assert_close(checkpoint.weights, weights, rtol=0, atol=0)
    assert first.meta == second.meta


def test_the_model_has_all_weights_and_evaluates(path, cfg):
    model = load_model(cfg, Checkpoint.read(path))
    assert not any(module.training for module in model.modules())
    assert_same_state(model, dict(pspnet().state_dict()))


def test_weights_of_another_model_are_refused(tmp_path, cfg):
    torch.save(pspnet('A0').state_dict(), tmp_path / 'a0.pth')
    with pytest.raises(UserError, match=r'^.*a0\.pth: '):
        load_model(cfg, Checkpoint.read(tmp_path / 'a0.pth'))


def test_a_file_without_tensors_and_one_that_runs_code(tmp_path):
    torch.save(dict(meta=dict(epoch=1)), tmp_path / 'empty.pth')
    with pytest.raises(UserError, match=r'holds named tensors, and .*empty\.pth has none'):
        Checkpoint.read(tmp_path / 'empty.pth')
    torch.save(dict(weight=torch.ones(1), path=Path('a')), tmp_path / 'code.pth')
    with pytest.raises(UserError, match='asks for pathlib'):
        Checkpoint.read(tmp_path / 'code.pth')
    assert Checkpoint.read(tmp_path / 'code.pth', trust=True).content['path'] == Path('a')


@MODELS.register_module()
class WithTeacher(EncoderDecoder):
    """Its `train`, as that of mmdet's LD and LAD, returns nothing."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)


def test_a_model_whose_eval_returns_nothing(cfg, path):
    cfg.model.type = 'WithTeacher'
    checkpoint = Checkpoint.read(path)
    model = load_model(cfg, checkpoint)
    assert type(model) is WithTeacher and not model.training
    conversion = convert_checkpoint(cfg, checkpoint, (64, 64))
    assert type(conversion.deploy) is WithTeacher and max(conversion.errors.values()) < 1e-5
    deploy, _ = load_deploy(cfg, checkpoint, Target('onnx', 'fp32', (64, 64)))
    assert type(deploy) is WithTeacher and not deploy.training
