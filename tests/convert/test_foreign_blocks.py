"""The registry of known libraries: which names it has, and that a library's deploy form is left alone.

That each block is fused right is tested against the libraries themselves in test_foreign.py.
"""

from __future__ import annotations

import pytest
import torch
from helpers import image, randomise_norms
from torch import nn

from repvgg_mm import FusedBlock, whole_model_convert
from repvgg_mm.convert.foreign import READERS
from repvgg_mm.convert.foreign_blocks import _branches, _tail

KNOWN = {
    'mmpretrain.models.backbones.repvgg.RepVGGBlock', 'mmpretrain.models.backbones.mobileone.MobileOneBlock',
    'mmpretrain.models.backbones.replknet.ReparamLargeKernelConv', 'mmpose.models.utils.reparam_layers.RepVGGBlock',
    'mmyolo.models.layers.yolo_bricks.RepVGGBlock', 'timm.models.byobnet.RepVggBlock',
    'timm.models.byobnet.MobileOneBlock', 'timm.models.fastvit.MobileOneBlock',
    'timm.models.fastvit.ReparamLargeKernelConv', 'timm.models.fastvit.RepMixer',
    'timm.models.fastvit.RepConditionalPosEnc', 'ultralytics.nn.modules.conv.RepConv',
    'transformers.models.rt_detr.modeling_rt_detr.RTDetrRepVggBlock',
    'transformers.models.d_fine.modeling_d_fine.DFineRepVggBlock'}
DEPLOYED = {  # the attribute by which a library's own deploy form is known
    'mmpretrain.models.backbones.repvgg.RepVGGBlock': 'branch_reparam',
    'mmpretrain.models.backbones.mobileone.MobileOneBlock': 'branch_reparam',
    'mmpretrain.models.backbones.replknet.ReparamLargeKernelConv': 'lkb_reparam',
    'mmpose.models.utils.reparam_layers.RepVGGBlock': 'conv_reparam',
    'mmyolo.models.layers.yolo_bricks.RepVGGBlock': 'rbr_reparam',
    'timm.models.byobnet.RepVggBlock': 'reparam_conv',
    'timm.models.fastvit.ReparamLargeKernelConv': 'reparam_conv',
    'timm.models.fastvit.RepMixer': 'reparam_conv', 'timm.models.fastvit.RepConditionalPosEnc': 'reparam_conv',
    'ultralytics.nn.modules.conv.RepConv': 'conv'}


def test_these_blocks_are_known():
    assert KNOWN <= set(READERS)


@pytest.mark.parametrize('name, attribute', DEPLOYED.items())
def test_a_librarys_deploy_form_is_left_alone(name, attribute):
    deployed = nn.Module()
    setattr(deployed, attribute, nn.Conv2d(2, 2, 3))
    assert READERS[name](deployed) is None


def test_pairs_are_read_in_the_words_of_each_library():
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    for word in ('bn', 'norm'):
        pair = nn.Module()
        pair.conv = conv
        setattr(pair, word, norm)
        branch, identity = _branches(pair, None, norm)
        assert branch.conv is conv and branch.norm is norm
        assert identity.conv is None and identity.norm is norm


def as_of(cls: type, name: str) -> type:
    """A class that is known by the name of another library's."""
    module, _, cls.__qualname__ = name.rpartition('.')
    cls.__module__ = module
    return cls


class Pair(nn.Module):
    def __init__(self, word: str, channels: int, size: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=groups, bias=False)
        self.word = word
        setattr(self, word, nn.BatchNorm2d(channels))

    def forward(self, x):
        return getattr(self, self.word)(self.conv(x))


def summed(norm: str, act: str, identity: bool) -> type:
    class Summed(nn.Module):
        """act(conv1(x) + conv2(x) + bn(x)), as RT-DETR (without bn) and ultralytics' RepConv compute it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = Pair(norm, 8, 3, 1 + identity), Pair(norm, 8, 1, 1 + identity)
            self.bn = nn.BatchNorm2d(8) if identity else None
            setattr(self, act, nn.SiLU())

        def forward(self, x):
            x = self.conv1(x) + self.conv2(x) + (0 if self.bn is None else self.bn(x))
            return getattr(self, act)(x)

        def fuse_convs(self):
            raise AssertionError('registered blocks are fused here')
    return Summed


@pytest.mark.parametrize('name, norm, act, identity', [
    ('transformers.models.rt_detr.modeling_rt_detr.RTDetrRepVggBlock', 'norm', 'activation', False),
    ('transformers.models.d_fine.modeling_d_fine.DFineRepVggBlock', 'norm', 'activation', False),
    ('ultralytics.nn.modules.conv.RepConv', 'bn', 'act', False),
    ('ultralytics.nn.modules.conv.RepConv', 'bn', 'act', True)])
def test_sums_of_two_or_three(name, norm, act, identity):
    torch.manual_seed(0)
    block = as_of(summed(norm, act, identity), name)()
    model = randomise_norms(nn.Sequential(block, nn.Conv2d(8, 2, 1))).double().eval()
    deploy = whole_model_convert(model)
    assert isinstance(deploy[0], FusedBlock) and deploy[0].branch_reparam.kernel_size == (3, 3)
    x = image(1, 8, 9, 11)
    torch.testing.assert_close(deploy(x), model(x), rtol=1e-10, atol=1e-10)


def test_mmyolos_alpha_counts_as_its_forward_takes_it():
    block = nn.Module()
    for name, size in (('rbr_dense', 3), ('rbr_1x1', 1)):
        pair = nn.Module()
        pair.conv, pair.bn = nn.Conv2d(2, 2, size), nn.BatchNorm2d(2)
        setattr(block, name, pair)
    block.rbr_identity = None
    for alpha, factor in ((0.5, 0.5), (0., 1.)):  # its forward: `if self.alpha`
        block.alpha = nn.Parameter(torch.tensor([alpha]))
        dense, small = READERS['mmyolo.models.layers.yolo_bricks.RepVGGBlock'](block).branches
        assert dense.factor == 1 and float(small.factor) == factor


def test_what_comes_behind_the_sum_keeps_its_order():
    block = nn.Module()
    block.act, block.se = nn.ReLU(), None
    assert _tail(block, 'se', 'act', 'absent') == {'act': block.act}
