"""What several tests build: small nets that have left the trivial start, and the branch sum written out."""

from __future__ import annotations

import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from tool_runs import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import repvgg_mm
from repvgg_mm.archs import get_arch
from repvgg_mm.block import RepVGGBlock, branch_by_branch

TINY = dict(depths=(1, 2, 4, 1), width_factors=(0.125, 0.125, 0.125, 0.125))
TINY_GROUPED = dict(TINY, groups=2)
TINY_SE = dict(TINY, se_ratio=4)
TINY_PSE = dict(TINY_SE, se_after_act=True)
TINY_ARCHS = dict(plain=TINY, grouped=TINY_GROUPED, se=TINY_SE, pse=TINY_PSE)


def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Mean, variance, weight and bias of every BatchNorm away from 0, 1, 1, 0; returns `model`."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return (torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(like)

    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, _BatchNorm):
                if norm.running_mean is not None:
                    norm.running_mean.copy_(uniform(norm.running_mean, -0.5, 0.5))
                    norm.running_var.copy_(uniform(norm.running_var, 0.05, 2.0))
                if norm.weight is not None:
                    norm.weight.copy_(uniform(norm.weight, 0.3, 1.3))
                    norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))
    return model


def image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(shape or (2, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def block(in_channels: int = 8, out_channels: int = 8, *, dtype: torch.dtype = torch.float64, **options) -> RepVGGBlock:
    """A block in training form and eval mode with random weights and norms."""
    torch.manual_seed(0)
    return randomise_norms(RepVGGBlock(in_channels, out_channels, **options)).to(dtype).eval()


def branch_sum(model: nn.Module, *inputs: Tensor):
    """`model(*inputs)` with every RepVGG block in training form as the sum of its branches."""
    with branch_by_branch(model):
        return model(*inputs)


def written_out(block: RepVGGBlock, x: Tensor) -> Tensor:
    """The branch sum of a block in eval mode in terms of torch.nn.functional alone, before SE and activation."""
    conv3, norm3 = block.branch_3x3
    conv1, norm1 = block.branch_1x1
    padding = conv3.dilation[0]
    padded = F.pad(x, [padding] * 4, mode='constant' if conv3.padding_mode == 'zeros' else conv3.padding_mode)
    out = _normalise(F.conv2d(padded, conv3.weight, None, conv3.stride, 0, conv3.dilation, conv3.groups), norm3)
    out = out + _normalise(F.conv2d(x, conv1.weight, None, conv1.stride, 0, 1, conv1.groups), norm1)
    return out if block.branch_norm is None else out + _normalise(x, block.branch_norm)


def _normalise(x: Tensor, norm: _BatchNorm) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Same names, same bits."""
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


def leaves(tree: object) -> tuple[list, list]:
    """Where the leaves of nested dicts, lists and tuples are, and the leaves."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, (list, tuple)):
        parts = enumerate(tree)
    else:
        return [()], [tree]

    places, values = [], []
    for key, part in parts:
        below, found = leaves(part)
        places += [(key, *place) for place in below]
        values += found
    return places, values


def backbone(arch: str | dict = TINY, **options) -> nn.Module:
    """A RepVGG in float32 and eval mode with random weights and norms."""
    torch.manual_seed(0)
    return randomise_norms(repvgg_mm.RepVGG(arch, **options)).eval()


def pspnet(arch: str | dict = TINY, **backbone) -> nn.Module:
    """mmseg's PSPNet on RepVGG in eval mode, see `pspnet_config`."""
    torch.manual_seed(0)
    return randomise_norms(MODELS.build(pspnet_config(arch, **backbone))).eval()


def retinanet(arch: str | dict = TINY, **backbone) -> nn.Module:
    """mmdet's RetinaNet on RepVGG in eval mode, see `retinanet_config`."""
    torch.manual_seed(0)
    return randomise_norms(MODELS.build(retinanet_config(arch, **backbone))).eval()


def two_stage(name: str, arch: str | dict = TINY) -> nn.Module:
    """A 'fasterrcnn' or 'maskrcnn' of mmdet on RepVGG in eval mode, see `two_stage_config`."""
    torch.manual_seed(0)
    return randomise_norms(MODELS.build(ConfigDict(two_stage_config(name, arch)))).eval()


def pspnet_config(arch: str | dict = TINY, **backbone) -> dict:
    """3 classes; output stride 8 unless `backbone` says otherwise. `_scope_` lets any registry build it."""
    widths = get_arch(arch).stage_channels
    norm_cfg = dict(type='BN')
    head = dict(channels=8, num_classes=3, dropout_ratio=0.1, norm_cfg=norm_cfg, align_corners=False)
    return dict(
        _scope_='mmseg',
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size_divisor=32),
        backbone=dict(dict(type='RepVGG', arch=arch, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=norm_cfg),
                      **backbone),
        decode_head=dict(head, type='PSPHead', in_channels=widths[3], in_index=3, pool_scales=(1, 2, 3, 6),
                         loss_decode=dict(type='CrossEntropyLoss')),
        auxiliary_head=dict(head, type='FCNHead', in_channels=widths[2], in_index=2, num_convs=1, concat_input=False,
                            loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4)),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'))


def retinanet_config(arch: str | dict = TINY, **backbone) -> dict:
    """3 classes, FPN of 16 channels."""
    return dict(
        _scope_='mmdet',
        type='RetinaNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True, pad_size_divisor=32),
        backbone=dict(dict(type='RepVGG', arch=arch), **backbone),
        neck=dict(type='FPN', in_channels=list(get_arch(arch).stage_channels), out_channels=16, start_level=1,
                  add_extra_convs='on_input', num_outs=5),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=16, stacked_convs=1, feat_channels=16,
            anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                                  ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4, target_stds=[1.] * 4),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
            sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5),
                      max_per_img=100))


def two_stage_config(name: str, arch: str | dict = TINY) -> dict:
    """The base of configs/ by its name with 5 classes, narrow heads and 12 proposals an image."""
    model = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / f'{name}_repvgg.py').model.to_dict()
    model['_scope_'] = 'mmdet'
    model['backbone']['arch'] = arch
    model['neck'].update(in_channels=list(get_arch(arch).stage_channels), out_channels=16)
    model['rpn_head'].update(in_channels=16, feat_channels=16)
    for part, settings in model['roi_head'].items():
        if part.endswith('extractor'):
            settings['out_channels'] = 16
        elif part.endswith('head'):
            settings.update(in_channels=16, num_classes=5)
    model['roi_head']['bbox_head']['fc_out_channels'] = 32
    model['roi_head'].get('mask_head', {})['conv_out_channels'] = 16
    model['test_cfg']['rpn']['max_per_img'] = 12
    return model


def group_settings(model: nn.Module, optim_wrapper: OptimWrapper) -> dict[str, list[float]]:
    """Learning rate and weight decay by the name of the parameter. Each that is trained stands in a group, and once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in optim_wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert names[parameter] not in found, names[parameter]
            found[names[parameter]] = [group['lr'], group['weight_decay']]
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found


def segment(model: nn.Module, batch: torch.Tensor):
    """mmseg's own predictions for images (N, 3, H, W)."""
    from mmseg.structures import SegDataSample
    shape = tuple(batch.shape[2:])
    samples = [SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for _ in batch]
    with torch.no_grad():
        return model.test_step(dict(inputs=list(batch), data_samples=samples))
