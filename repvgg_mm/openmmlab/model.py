"""The model of a config: built, recognised, and what the config says of its RepVGG."""

from __future__ import annotations

import copy
import json
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
        UserError: the config names a part or an option that there is not, or a neck or head for another backbone.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with explained():
        model = MODELS.build(copy.deepcopy(cfg.model))  # DETRs write into the config of their head
    check_widths(model, cfg)
    return model


def check_widths(model: nn.Module, cfg: Config) -> None:
    """Raise UserError, naming the key, if the neck or a head takes other channels than the model's RepVGG gives.

    Where the config says otherwise how they fit together, nothing is known and nothing is raised.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, RepVGG):
        return

    widths = list(backbone.out_channels)
    neck = cfg.model.get('neck')
    if neck is not None:
        found = neck.get('in_channels') if isinstance(neck, dict) else None  # else several, one after another
        if isinstance(found, (list, tuple)) and sorted(found) != sorted(widths):  # the order is the neck's own
            raise _other_channels('model.neck.in_channels', list(found), widths, backbone)
        return

    for name in ('decode_head', 'auxiliary_head'):
        heads = cfg.model.get(name) or []
        single = isinstance(heads, dict)
        for number, head in enumerate([heads] if single else heads):
            place = f'model.{name}' if single else f'model.{name}[{number}]'
            _check_head(place, head, widths, backbone)


def _check_head(place: str, head: dict, widths: list[int], backbone: RepVGG) -> None:
    """A head of mmseg, which takes the feature map `in_index`, by default the last, or several of them."""
    index, found = head.get('in_index', -1), head.get('in_channels')
    if found is None or ('in_index' not in head and not isinstance(found, int)):
        return  # a head of another kind, which takes them all
    indices = [index] if isinstance(index, int) else list(index)
    if any(not -len(widths) <= one < len(widths) for one in indices):
        raise UserError(
            f'A head takes some of the {len(widths)} feature maps of its backbone, and {place}.in_index is {index}. '
            f'Set it to numbers from 0 to {len(widths) - 1}, or let backbone.out_indices have more.')

    taken = [found] if isinstance(found, int) else list(found)
    wanted = [widths[one] for one in indices]
    if taken != wanted:
        one = isinstance(found, int) and len(wanted) == 1
        raise _other_channels(f'{place}.in_channels', found, wanted[0] if one else wanted, backbone)


def _other_channels(key: str, found: object, wanted: object, backbone: RepVGG) -> UserError:
    return UserError(
        f'What takes feature maps has their channels, and {key} is {found}, where this RepVGG gives {wanted} '
        f'(those of out_indices={tuple(backbone.out_indices)} have {backbone.out_channels}). Set {key}={wanted}.')


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


def num_classes_of(model: nn.Module) -> int:
    """Of a segmentor, or of a detector of one stage or two."""
    if is_segmentor(model):
        return decode_head_of(model).num_classes
    return box_head_of(model).num_classes


def box_head_of(model: nn.Module) -> nn.Module:
    """The head whose boxes a detector gives: of a cascade the last."""
    head = model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def mask_head_of(model: nn.Module) -> nn.Module | None:
    """The head whose masks a detector of two stages gives, of a cascade the last; None if there is none."""
    head = getattr(getattr(model, 'roi_head', None), 'mask_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head


def settings_of(model: nn.Module) -> dict:
    """`test_cfg` of a detector as JSON has it: of its head, or of both stages."""
    settings = model.test_cfg if hasattr(model, 'roi_head') else model.bbox_head.test_cfg
    return json.loads(json.dumps(settings))


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
