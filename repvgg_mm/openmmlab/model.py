"""The model of a config: built, recognised, and what the config says of its RepVGG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..backbone import RepVGG
from ..errors import UserError
from .config import config_dicts, explained, kind_of

REPVGG_TYPES = ('RepVGG', 'repvgg_mm.RepVGG', 'repvgg_mm.backbone.RepVGG', RepVGG)  # names, or the class itself
DEFAULT_SHAPE = (512, 512)
SYNC_BN = ('SyncBN', 'SyncBatchNorm')


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as a Runner builds it, without its data and without its initial weights.

    Raises:
        UserError: the config names a part or an option that there is not.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with explained():
        return MODELS.build(cfg.model)


def is_segmentor(model: nn.Module) -> bool:
    """Whether `model` is one of mmseg's, or does as they do."""
    return hasattr(model, 'encode_decode')


def is_detector(model: nn.Module) -> bool:
    """Whether `model` is one of mmdet's, of one stage or two."""
    return hasattr(model, 'bbox_head') or hasattr(model, 'roi_head')


def decode_head_of(model: nn.Module) -> nn.Module:
    """The head whose logits a segmentor gives: of a cascade the last."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def repvgg_parts(cfg: Config) -> Iterator[ConfigDict]:
    """The settings of every RepVGG in a config."""
    for part in config_dicts(cfg._cfg_dict):
        if part.get('type') in REPVGG_TYPES:
            yield part


def replace_sync_bn(cfg: Config) -> None:
    """Turn every norm of type SyncBN in the config into BN, which has the same weights."""
    for part in config_dicts(cfg._cfg_dict):
        if kind_of(part) in SYNC_BN:
            part['type'] = 'BN'


def arch_of_config(cfg: Config) -> object:
    """`arch` of the RepVGG in a config; a list if there are several or none."""
    archs = []
    for part in repvgg_parts(cfg):
        arch = part.arch if isinstance(part.arch, str) else dict(part.arch)  # the reader refuses a ConfigDict
        archs.append(arch)
    return archs[0] if len(archs) == 1 else archs


def shape_of_config(cfg: Config) -> tuple[int, int]:
    """Height and width of the data preprocessor, else 512x512."""
    preprocessor = cfg.model.get('data_preprocessor') or {}
    size = preprocessor.get('size')
    return tuple(size) if size else DEFAULT_SHAPE


def check_size(shape: Sequence[int]) -> None:
    """Raise UserError if no image has this height and width."""
    if min(shape) < 1:
        given = ' '.join(map(str, shape))
        raise UserError(
            f'An image has a pixel or more on each side, got --shape {given}. Choose another --shape H W.')
