"""The backbones that are compared, and how each is put into the config of a head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

HERE = Path(__file__).parent
HEADS = ('semfpn_camvid', 'pspnet_camvid', 'retinanet_bccd')

HALF = dict(depths=(2, 4, 14, 1), width_factors=(0.5, 0.5, 0.5, 1.5))  # smaller than A0


class Backbone(NamedTuple):
    """A backbone, its family (a curve of the plot), and the channels of its maps at strides 4 to 32."""

    family: str
    config: dict
    channels: tuple[int, int, int, int]
    dilated: dict  # settings for output stride 8


REPVGG_DILATED = dict(strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
RESNET_DILATED = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
MOBILENET_DILATED = dict(strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4))


def repvgg(arch: str | dict, channels: tuple[int, int, int, int]) -> Backbone:
    return Backbone('RepVGG', dict(type='RepVGG', arch=arch), channels, REPVGG_DILATED)


def resnet(depth: int, channels: tuple[int, int, int, int]) -> Backbone:
    return Backbone('ResNet', dict(type='ResNet', depth=depth), channels, RESNET_DILATED)


BACKBONES = {
    'RepVGG-half': repvgg(HALF, (32, 64, 128, 768)),
    'RepVGG-A0': repvgg('A0', (48, 96, 192, 1280)),
    'RepVGG-A1': repvgg('A1', (64, 128, 256, 1280)),
    'RepVGG-B0': repvgg('B0', (64, 128, 256, 1280)),
    'ResNet-18': resnet(18, (64, 128, 256, 512)),
    'ResNet-50': resnet(50, (256, 512, 1024, 2048)),
    'MobileNetV2': Backbone(
        'MobileNetV2', dict(type='MobileNetV2', out_indices=(1, 2, 4, 6)), (24, 32, 96, 320), MOBILENET_DILATED),
}


def config_of(head: str, backbone: str, seed: int, steps: int | None = None) -> Config:
    """The config of one training: that of the head with this backbone, this seed, and nothing else changed.

    `steps` replaces those of the head and stretches its schedule, the warm-up included.
    """
    cfg = Config.fromfile(HERE / f'{head}.py')
    chosen = BACKBONES[backbone]
    model = cfg.model
    settings = copy.deepcopy(chosen.config)

    if 'auxiliary_head' in model and model.auxiliary_head:
        settings |= chosen.dilated
        model.decode_head.in_channels = chosen.channels[3]
        model.auxiliary_head.in_channels = chosen.channels[2]
    else:
        model.neck.in_channels = list(chosen.channels)

    if chosen.family == 'ResNet' and cfg.default_scope == 'mmseg':
        settings['type'] = 'ResNetV1c'  # as mmseg's own configs have it
    if chosen.family == 'MobileNetV2' and cfg.default_scope == 'mmdet':
        settings['out_indices'] = (1, 2, 4, 7)  # mmdet's has one more layer, which is computed in any case
        model.neck.in_channels[3] = 1280
    model.backbone = dict(norm_cfg=dict(type='BN'), norm_eval=False, **settings)

    cfg.randomness = dict(seed=seed)
    if steps:
        _stretch(cfg, steps)
    return cfg


def _stretch(cfg: Config, steps: int) -> None:
    """Let a training have `steps` steps, its warm-up the same part of them."""
    warm_up, decay = cfg.param_scheduler
    share = warm_up.end / cfg.train_cfg.max_iters
    warm_up.end = decay.begin = max(round(share * steps), 1)
    decay.end = steps
    cfg.train_cfg.update(max_iters=steps, val_interval=steps)
