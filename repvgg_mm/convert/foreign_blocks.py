"""Blocks of known libraries taken apart; each reads the training form and gives None for the library's deploy form.

A branch's convolution is read from the module that computes it: an option that a library takes and ignores
(dilation in mmyolo, padding_mode in mmpose) is ignored here too.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .foreign import Branch, Parts, fusible

TRANSFORMERS = dict(  # models of Hugging Face that have the same block, and the beginning of its name
    rt_detr='RTDetr', rt_detr_v2='RTDetrV2', d_fine='DFine', deimv2='Deimv2', omdet_turbo='OmDetTurbo',
    pp_doclayout_v2='PPDocLayoutV2', pp_doclayout_v3='PPDocLayoutV3', pp_doclayout_v4='PPDocLayoutV4')


@fusible('mmpretrain.models.backbones.repvgg.RepVGGBlock')
def _mmpretrain_repvgg(block: nn.Module) -> Parts | None:
    if hasattr(block, 'branch_reparam'):
        return None

    branches = _branches(block.branch_3x3, block.branch_1x1, block.branch_norm)
    return Parts(branches, _tail(block, 'se_layer', 'act'))


@fusible('mmpretrain.models.backbones.mobileone.MobileOneBlock')
def _mmpretrain_mobileone(block: nn.Module) -> Parts | None:
    if hasattr(block, 'branch_reparam'):
        return None

    branches = _branches(*block.branch_conv_list, block.branch_scale, block.branch_norm)
    return Parts(branches, _tail(block, 'se', 'act'))


@fusible('mmpretrain.models.backbones.replknet.ReparamLargeKernelConv')
def _mmpretrain_replk(block: nn.Module) -> Parts | None:
    if hasattr(block, 'lkb_reparam'):
        return None

    branches = _branches(block.lkb_origin, getattr(block, 'small_conv', None))
    return Parts(branches, {})


@fusible('mmpose.models.utils.reparam_layers.RepVGGBlock')
def _mmpose_repvgg(block: nn.Module) -> Parts | None:
    if hasattr(block, 'conv_reparam'):
        return None

    branches = _branches(block.branch_3x3, block.branch_1x1, block.branch_norm)
    return Parts(branches, _tail(block, 'act'))


@fusible('mmyolo.models.layers.yolo_bricks.RepVGGBlock')
def _mmyolo_repvgg(block: nn.Module) -> Parts | None:
    if hasattr(block, 'rbr_reparam'):
        return None

    dense, small, *identity = _branches(block.rbr_dense, block.rbr_1x1, block.rbr_identity)
    if block.alpha is not None:
        alpha = block.alpha.detach()
        small = small._replace(factor=torch.where(alpha == 0, 1, alpha))  # its forward: `if self.alpha`
    return Parts([dense, small, *identity], _tail(block, 'se', 'nonlinearity'))


@fusible('timm.models.byobnet.RepVggBlock')
def _timm_repvgg(block: nn.Module) -> Parts | None:
    if block.reparam_conv is not None:
        return None

    branches = _branches(block.conv_kxk, block.conv_1x1, block.identity)
    return Parts(branches, _tail(block, 'attn', 'act'))


@fusible('timm.models.byobnet.MobileOneBlock', 'timm.models.fastvit.MobileOneBlock')
def _timm_mobileone(block: nn.Module) -> Parts | None:
    if block.reparam_conv is not None:
        return None
    if block.conv_kxk is None and block.conv_scale is None:  # of FastViT: a norm, no convolution
        return None

    convs = block.conv_kxk or ()
    branches = _branches(*convs, block.conv_scale, block.identity)
    return Parts(branches, _tail(block, 'attn', 'se', 'act'))


@fusible('timm.models.fastvit.ReparamLargeKernelConv')
def _timm_replk(block: nn.Module) -> Parts | None:
    if block.reparam_conv is not None:
        return None

    branches = _branches(block.large_conv, getattr(block, 'small_conv', None))
    return Parts(branches, _tail(block, 'se', 'act'))


@fusible('timm.models.fastvit.RepMixer')
def _timm_rep_mixer(block: nn.Module) -> Parts | None:
    """x + scale * (mixer(x) - norm(x)), the scale one number a channel."""
    if block.reparam_conv is not None:
        return None

    mixer = _timm_mobileone(block.mixer)
    if mixer is None:
        return None
    scale = getattr(block.layer_scale, 'gamma', None)
    scale = torch.ones(block.dim).to(block.norm.identity.running_mean) if scale is None else scale.detach().flatten()

    branches = [branch._replace(norm=_times(branch.norm, scale)) for branch in mixer.branches]
    subtracted = Branch(None, _times(block.norm.identity, -scale))
    return Parts([*branches, subtracted, Branch(None, _no_norm(block.mixer.conv_kxk[0].conv))], {})


@fusible('timm.models.fastvit.RepConditionalPosEnc')
def _timm_position_encoding(block: nn.Module) -> Parts | None:
    """conv(x) + x, without a norm."""
    if block.reparam_conv is not None:
        return None

    norm = _no_norm(block.pos_enc)
    return Parts([Branch(block.pos_enc, norm), Branch(None, norm)], {})


@fusible(*(
    f'transformers.models.{model}.modeling_{model}.{start}RepVggBlock' for model, start in TRANSFORMERS.items()))
def _transformers_repvgg(block: nn.Module) -> Parts | None:
    """activation(conv1(x) + conv2(x))."""
    return Parts(_branches(block.conv1, block.conv2), _tail(block, 'activation'))


@fusible('ultralytics.nn.modules.conv.RepConv')
def _ultralytics_repconv(block: nn.Module) -> Parts | None:
    """act(conv1(x) + conv2(x) + bn(x))."""
    if hasattr(block, 'conv'):
        return None

    return Parts(_branches(block.conv1, block.conv2, block.bn), _tail(block, 'act'))


def _no_norm(conv: nn.Conv2d) -> _BatchNorm:
    """A norm that changes nothing, for a branch behind which there is none."""
    return nn.BatchNorm2d(conv.out_channels, eps=0, affine=False).to(conv.weight).eval()


def _times(norm: _BatchNorm, scale: Tensor) -> _BatchNorm:
    """A copy of a norm whose output is multiplied, channel by channel."""
    scaled = copy.deepcopy(norm)
    with torch.no_grad():
        scaled.weight.mul_(scale)
        scaled.bias.mul_(scale)
    return scaled


def _tail(block: nn.Module, *names: str) -> dict[str, nn.Module]:
    """Those of a block's modules that are there, in the order in which its forward calls them."""
    tail = {}
    for name in names:
        module = getattr(block, name, None)
        if module is not None:
            tail[name] = module
    return tail


def _branches(*modules: nn.Module | None) -> list[Branch]:
    """Of pairs of a convolution and its norm, of norms alone, None left out."""
    branches = []
    for module in modules:
        if isinstance(module, _BatchNorm):
            branches.append(Branch(None, module))
        elif module is not None:
            norm = getattr(module, 'bn', None)
            branches.append(Branch(module.conv, module.norm if norm is None else norm))
    return branches
