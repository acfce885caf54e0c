"""What the tests of engines share: a description, and a trained model with engines of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from helpers import pspnet_config, randomise_norms
from mmengine.config import Config
from tool_runs import ROOT, derived_config
from torch import nn

from repvgg_mm.demo.shapes import CLASSES
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.description import Description, Input, InputPreprocessing
from repvgg_mm.engine.engine import Engine
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.model import build_model

RESIZED = 80  # images of 64x64 are resized to it, and padded to 96 where the model sees them
TARGETS = dict(
    onnx=Target('onnx', shape=(96, 96)),
    openvino=Target('openvino', shape=(96, 96)),
    uint8=Target('openvino', shape=(80, 80), preprocess=True),
    nms=Target('onnx', shape=(80, 80), preprocess=True, nms=True),
    labels=Target('onnx', shape=(80, 80), dynamic=True, preprocess=True, argmax=True))


def quiet(step: str) -> None:
    """No progress."""


def description(**changes: object) -> Description:
    """Of a small engine that takes two images of any height and gives `pooled`, but for `changes`."""
    common = Description(
        task='segmentation',
        model='EncoderDecoder',
        arch='A0',
        classes=None,
        palette=None,
        source='trained.pth',
        source_sha256='0' * 64,
        versions={},
        engine='onnx',
        precision='fp32',
        outputs=['pooled'],
        input=Input('image', 'float32', 'NCHW', [2, 3, None, 8]),
        openvino_properties={},
        preprocessing=InputPreprocessing(None, None, swap_channels=False, pad_divisor=1, pad_value=0, inside=False),
        graph={})
    return replace(common, **changes)


def write_config(path: Path, model: dict, shapes: Path, base: str, dataset: dict, evaluator: dict) -> Path:
    """A config of the package with another model, a batch of two, and images resized before the model sees them."""
    pipeline = Config.fromfile(ROOT / base).test_dataloader.dataset.pipeline
    pipeline = [step.to_dict() for step in pipeline if step.type != 'Resize']
    pipeline.insert(1, dict(type='Resize', scale=(RESIZED, RESIZED), keep_ratio=True))
    loader = dict(
        batch_size=2,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(data_root=str(shapes), pipeline=pipeline, **dataset))
    return derived_config(path, f'model = dict(_delete_=True, **{model})\ntest_dataloader = {loader}\n'
                                f'val_dataloader = test_dataloader\ntest_evaluator = {evaluator}', base)


class Trained:
    """A config with a checkpoint, and engines of it made when they are asked for."""

    def __init__(self, path: Path, model: nn.Module, classes: tuple[str, ...]) -> None:
        self.path = path
        self.model = model
        self.folder = path.parent
        self.checkpoint_file = self.folder / 'checkpoint.pth'
        meta = dict(dataset_meta=dict(classes=classes))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), self.checkpoint_file)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.read(self.checkpoint_file)

    @property
    def cfg(self) -> Config:
        """A new one, which a test may change."""
        cfg = Config.fromfile(self.path)
        cfg.log_level = 'ERROR'
        return cfg

    def engine_file(self, name: str) -> Path:
        """Of one of `TARGETS`."""
        out = self.folder / name
        if not out.exists():
            export(self.cfg, self.checkpoint, out, TARGETS[name], progress=quiet)
        return out / ('engine.onnx' if TARGETS[name].engine == 'onnx' else 'engine.xml')

    def engine(self, name: str) -> Engine:
        return Engine(self.engine_file(name), threads=1)


def trained_segmentor(folder: Path, shapes: Path) -> Trained:
    """A PSPNet with random weights, for images that are padded."""
    model = pspnet_config()
    for head in ('decode_head', 'auxiliary_head'):
        model[head]['num_classes'] = len(CLASSES)
    model['data_preprocessor'].update(test_cfg=dict(size_divisor=32), size=(96, 96))
    del model['data_preprocessor']['size_divisor']

    path = write_config(folder / 'pspnet.py', model, shapes, 'configs/pspnet_repvgg_a0_shapes.py', {}, {})
    torch.manual_seed(0)
    return Trained(path, randomise_norms(build_model(Config.fromfile(path))).eval(), CLASSES)


def two_networks() -> list[nn.Sequential]:
    """The second one is the first with other weights, as if rounded."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    second = copy.deepcopy(first)
    for parameter in second.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return [first.eval(), second.eval()]
