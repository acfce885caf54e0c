"""The registry of known libraries: which names it has, and that a library's deploy form is left alone.

That each block is fused right is tested against the libraries themselves in test_foreign.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repvgg_mm.convert.foreign import READERS
from repvgg_mm.convert.foreign_blocks import _branches, _tail

KNOWN = {
    'mmpretrain.models.backbones.repvgg.RepVGGBlock', 'mmpretrain.models.backbones.mobileone.MobileOneBlock',
    'mmpretrain.models.backbones.replknet.ReparamLargeKernelConv', 'mmpose.models.utils.reparam_layers.RepVGGBlock',
    'mmyolo.models.layers.yolo_bricks.RepVGGBlock', 'timm.models.byobnet.RepVggBlock',
    'timm.models.byobnet.MobileOneBlock', 'timm.models.fastvit.MobileOneBlock',
    'timm.models.fastvit.ReparamLargeKernelConv'}
DEPLOYED = {  # the attribute by which a library's own deploy form is known
    'mmpretrain.models.backbones.repvgg.RepVGGBlock': 'branch_reparam',
    'mmpretrain.models.backbones.mobileone.MobileOneBlock': 'branch_reparam',
    'mmpretrain.models.backbones.replknet.ReparamLargeKernelConv': 'lkb_reparam',
    'mmpose.models.utils.reparam_layers.RepVGGBlock': 'conv_reparam',
    'mmyolo.models.layers.yolo_bricks.RepVGGBlock': 'rbr_reparam',
    'timm.models.byobnet.RepVggBlock': 'reparam_conv',
    'timm.models.fastvit.ReparamLargeKernelConv': 'reparam_conv'}


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
