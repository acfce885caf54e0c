"""A function of an image: the pipeline of the config, the deploy form of the weights, the names of the classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers import randomise_norms
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import repvgg_mm
from repvgg_mm import Branch, FusedBlock, Parts, UserError, fusible
from repvgg_mm.convert.blocks import blocks_of, has_branches
from repvgg_mm.deploy import checkpoint as checkpoint_module
from repvgg_mm.errors import UnusableFile
from repvgg_mm.inference.image_model import load_image_model
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack
LOAD = dict(type='LoadImageFromFile')


def model_behind(image_model) -> nn.Module:
    return image_model.test_step.__self__


@pytest.mark.parametrize('form', ['training', 'deploy'])
def test_the_model_has_no_branches_and_stays_without_gradients(form, trained, images):
    files = trained('pspnet')
    checkpoint = files.checkpoint if form == 'training' else files.deploy_checkpoint
    predict = load_image_model(Config.fromfile(files.config), checkpoint, 'cpu')
    model = model_behind(predict)
    assert blocks_of(model) and not has_branches(model) and not model.training
    image = predict.read(images / 'val' / '0000.jpg')
    assert not predict(image, '0000.jpg').seg_logits.data.requires_grad


def test_the_checkpoint_is_read_and_hashed_once(trained, monkeypatch):
    files = trained('pspnet')
    calls = []
    for name in ('read_checkpoint', 'sha256_of'):
        def counted(*arguments, name=name, original=getattr(checkpoint_module, name), **options):
            calls.append(name)
            return original(*arguments, **options)
        monkeypatch.setattr(checkpoint_module, name, counted)
    cfg = Config.fromfile(files.config)
    cfg.pop('test_dataloader')  # the classes are those of the checkpoint
    assert load_image_model(cfg, files.checkpoint, 'cpu').palette
    assert sorted(calls) == ['read_checkpoint', 'sha256_of']


class TwoKernels(nn.Module):
    """act(norm1(conv1(x)) + norm2(conv2(x))), a block of a user's own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm1(self.conv1(x)) + self.norm2(self.conv2(x)))


@fusible(f'{__name__}.TwoKernels')
def two_kernels(block: TwoKernels) -> Parts:
    branches = [Branch(block.conv1, block.norm1), Branch(block.conv2, block.norm2)]
    return Parts(branches, dict(act=block.act))


class OwnBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.block = TwoKernels(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return self.block(self.stem(x)),


def test_blocks_of_other_libraries_are_fused(trained, images, classes, palette, tmp_path):
    from mmseg.apis import inference_model, init_model
    MODELS.register_module(module=OwnBackbone, force=True)
    cfg = Config.fromfile(trained('pspnet').config)
    cfg.model.backbone = dict(type='mmengine.OwnBackbone')
    cfg.model.decode_head.update(in_channels=8, in_index=0)
    cfg.model.pop('auxiliary_head')
    torch.manual_seed(0)
    model = randomise_norms(build_model(cfg))
    meta = dict(dataset_meta=dict(classes=classes, palette=palette))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'own.pth')

    predict = load_image_model(cfg, tmp_path / 'own.pth', 'cpu')
    assert [type(block) for block in blocks_of(model_behind(predict))] == [FusedBlock]
    path = images / 'val' / '0000.jpg'
    truth = inference_model(init_model(cfg, str(tmp_path / 'own.pth'), device='cpu'), str(path))
    found = predict(predict.read(path), path)
    torch.testing.assert_close(found.seg_logits.data, truth.seg_logits.data, rtol=1e-4, atol=1e-4)


def test_an_image_is_read_as_the_pipeline_says_even_if_that_takes_arrays(trained, images):
    files = trained('pspnet')
    path = images / 'val' / '0000.jpg'
    cfg = Config.fromfile(files.config)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type='LoadImageFromNDArray', color_type='grayscale')
    grey = load_image_model(cfg, files.checkpoint, 'cpu').read(path)
    np.testing.assert_array_equal(grey.squeeze(), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    cfg.test_dataloader.dataset.pipeline[0] = LOAD
    colour = load_image_model(cfg, files.checkpoint, 'cpu').read(path)
    np.testing.assert_array_equal(colour, cv2.imread(str(path)))


def test_a_damaged_image_is_named(trained, images, tmp_path):
    files = trained('pspnet')
    predict = load_image_model(Config.fromfile(files.config), files.checkpoint, 'cpu')
    (tmp_path / 'half.jpg').write_bytes((images / 'val' / '0000.jpg').read_bytes()[:900])
    with pytest.raises(UnusableFile, match=r'and .*half\.jpg is not \(.*copy it again'):
        predict.read(tmp_path / 'half.jpg')


@pytest.mark.parametrize('wrapped', ['several', 'repeated'])
def test_the_innermost_data_set_is_meant_and_of_several_the_first(wrapped, trained):
    files = trained('pspnet')
    cfg = Config.fromfile(files.config)
    dataset = cfg.test_dataloader.dataset.to_dict()
    dataset['metainfo'] = dict(classes=('a', 'b', 'c'), palette=[[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    dataset['pipeline'][2]['scale'] = (32, 32)
    cfg.pop('test_pipeline')
    if wrapped == 'several':
        other = dict(type='BaseSegDataset', metainfo=dict(classes=('d', 'e', 'f')), pipeline=[])
        cfg.test_dataloader.dataset = dict(
            type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=2, dataset=dataset), other])
    else:
        cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dataset)

    predict = load_image_model(cfg, files.checkpoint, 'cpu')
    assert (predict.classes, predict.palette) == (['a', 'b', 'c'], [[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    assert [type(step).__name__ for step in predict.prepare.transforms] == ['Resize', 'PackSegInputs']
    assert predict(np.zeros((64, 64, 3), np.uint8), 'black').img_shape == (32, 32)


def test_a_config_without_dataset_uses_the_names_in_the_checkpoint_or_numbers(trained, classes, palette):
    files = trained('pspnet')
    cfg = Config.fromfile(files.config)
    assert load_image_model(cfg, files.checkpoint, 'cpu').classes == classes
    cfg.pop('test_dataloader')
    model = load_image_model(cfg, files.checkpoint, 'cpu')
    assert (model.classes, model.palette) == (classes, palette)
    assert load_image_model(cfg, files.deploy_checkpoint, 'cpu').classes == ['class 0', 'class 1', 'class 2']
    cfg.test_dataloader = dict(dataset=dict(type='CityscapesDataset'))  # 19 classes do not fit the model's 3
    assert load_image_model(cfg, files.checkpoint, 'cpu').classes == classes


def test_a_size_that_the_model_cannot_take(trained):
    files = trained('pspnet')
    strip = np.zeros((1, 3000, 3), np.uint8)  # resized to 128 columns it has no row
    with pytest.raises(UserError, match=r'size that the model can take, and image_0 of 1x3000 pixels has not \('):
        repvgg_mm.predict(files.config, files.checkpoint, strip, device='cpu')
