"""The table of variants against the paper's and the official repository's numbers."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repvgg_mm import ARCHS, Arch, RepVGG, UserError
from repvgg_mm.archs import get_arch
from repvgg_mm.block import branch_by_branch, named_blocks

# Widths of the stem and of stages 1 to 4.
WIDTHS = {
    'A0': (48, 48, 96, 192, 1280),
    'A1': (64, 64, 128, 256, 1280),
    'A2': (64, 96, 192, 384, 1408),
    'B0': (64, 64, 128, 256, 1280),
    'B1': (64, 128, 256, 512, 2048),
    'B2': (64, 160, 320, 640, 2560),
    'B3': (64, 192, 384, 768, 2560),
    'D2se': (64, 160, 320, 640, 2560),
    'L2pse': (64, 160, 320, 640, 2560),
}
DEPTHS = {'A': (2, 4, 14, 1), 'B': (4, 6, 16, 1), 'D': (8, 14, 24, 1), 'L': (8, 14, 24, 1)}

# With the linear layer of 1000 classes, at 224x224: million parameters in training and deploy form, GMACs likewise.
SIZES = {
    'A0':   (9.11, 8.31, 1.51, 1.36),
    'A1':   (14.09, 12.79, 2.63, 2.36),
    'A2':   (28.21, 25.50, 5.69, 5.12),
    'B0':   (15.82, 14.34, 3.40, 3.06),
    'B1':   (57.42, 51.83, 13.13, 11.82),
    'B1g2': (45.78, 41.36, 9.79, 8.81),
    'B1g4': (39.97, 36.13, 8.12, 7.31),
    'B2':   (89.02, 80.32, 20.42, 18.38),
    'B2g2': (70.85, 63.96, 15.20, 13.68),
    'B2g4': (61.76, 55.78, 12.59, 11.33),
    'B3':   (123.09, 110.96, 29.12, 26.21),
    'B3g2': (96.91, 87.40, 21.61, 19.45),
    'B3g4': (83.83, 75.63, 17.85, 16.06),
    'D2se': (133.33, 120.39, 36.48, 32.83),
}


def test_the_table_has_these_variants():
    assert list(ARCHS) == [*SIZES, 'L2pse']


@pytest.mark.parametrize('name', ARCHS)
def test_widths_and_depths(name):
    arch = get_arch(name)
    assert (arch.stem_channels, *arch.stage_channels) == WIDTHS[name.split('g')[0]]
    assert arch.depths == DEPTHS[name[0]]
    assert arch.groups == (int(name[-1]) if 'g' in name else 1)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs(name, deploy):
    with torch.device('meta'):
        backbone = RepVGG(name, out_indices=(3,), deploy=deploy).eval()
        model = nn.Sequential(nn.Linear(get_arch(name).stage_channels[3], 1000))
        with FlopCounterMode(display=False) as counter, torch.no_grad(), branch_by_branch(backbone):
            model(backbone(torch.empty(1, 3, 224, 224))[0].mean((2, 3)))
    params = sum(parameter.numel() for module in (backbone, model) for parameter in module.parameters())
    found = round(params / 1e6, 2), round(counter.get_total_flops() / 2e9, 2)
    assert found == (SIZES[name][deploy], SIZES[name][2 + deploy])


@pytest.mark.parametrize('deploy', [False, True])
def test_l2pse_is_d2se_with_larger_squeeze_and_excitation(deploy):
    blocks = {64: 1, 160: 8, 320: 14, 640: 24, 2560: 1}  # channels: how many blocks have them
    larger = sum(count * 2 * channels * (channels // 4) + count * (channels // 4) for channels, count in blocks.items())
    smaller = sum(count * 2 * channels * (channels // 16) + count * (channels // 16)
                  for channels, count in blocks.items())
    with torch.device('meta'):
        sizes = {name: sum(p.numel() for p in RepVGG(name, deploy=deploy).parameters()) for name in ('D2se', 'L2pse')}
    assert sizes['L2pse'] - sizes['D2se'] == larger - smaller


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('name', ['B1g2', 'B2g4', 'B3g4', 'B3'])
def test_every_second_layer_is_grouped(name, deploy):
    with torch.device('meta'):
        blocks = [block for _, block in named_blocks(RepVGG(name, deploy=deploy))]
    convs = [[m for m in block.modules() if isinstance(m, nn.Conv2d)] for block in blocks]
    assert len(blocks) == 1 + 4 + 6 + 16 + 1
    grouped = [layer for layer, layers in enumerate(convs) if layers[0].groups > 1]
    assert grouped == (list(range(2, 27, 2)) if 'g' in name else [])
    for layers in convs:
        assert len({conv.groups for conv in layers}) == 1
        assert layers[0].groups in (1, get_arch(name).groups)


def test_no_layer_past_26_is_grouped():
    arch = Arch((14, 20, 1, 1), (1, 1, 1, 1), groups=4)
    assert [layer for layer in range(60) if arch.groups_of_layer(layer) != 1] == list(range(2, 27, 2))


@pytest.mark.parametrize('name, hidden', [
    ('D2se', {64: 4, 160: 10, 320: 20, 640: 40, 2560: 160}), ('B2', {}),
    ('L2pse', {64: 16, 160: 40, 320: 80, 640: 160, 2560: 640})])
def test_hidden_channels_of_squeeze_and_excitation(name, hidden):
    with torch.device('meta'):
        blocks = [block for _, block in named_blocks(RepVGG(name))]
    found = {block.se_layer.conv1.conv.in_channels: block.se_layer.conv1.conv.out_channels
             for block in blocks if not isinstance(block.se_layer, nn.Identity)}
    assert found == hidden


@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_arch_of_ones_own(kind):
    arch = get_arch(kind(depths=[1, 2], width_factors=[0.5, 1], groups=2))
    assert (arch.stem_channels, *arch.stage_channels, arch.se_ratio) == (32, 32, 128, 0)


@pytest.mark.parametrize('written, name', [('RepVGG-A0', 'A0'), ('RepVGG-D2se', 'D2se'), ('RepVGGplus-L2pse', 'L2pse')])
def test_names_as_the_papers_write_them(written, name):
    assert get_arch(written) is ARCHS[name]


def test_unknown_name():
    with pytest.raises(UserError, match=r"must be one of A0, A1, .*, D2se, L2pse, or a dict; got 'C1'\. For a net"):
        get_arch('C1')


@pytest.mark.parametrize('arch', [
    dict(depths=(1,), width_factors=(1,), width=3), dict(depths=(1,)), dict(width_factors=(1,)), {}])
def test_unknown_or_missing_key(arch):
    with pytest.raises(UserError, match=r'has the keys depths, width_factors, groups, se_ratio, .* needed; got'):
        get_arch(arch)


@pytest.mark.parametrize('depths, width_factors', [((1, 2), (1,)), ((1,), (1, 1)), ((), ()), ((1, 0), (1, 1))])
def test_depths_and_widths_of_other_stages(depths, width_factors):
    with pytest.raises(UserError, match='one depth of at least 1 and one width factor a stage; got depths='):
        get_arch(dict(depths=depths, width_factors=width_factors))


@pytest.mark.parametrize('options, message', [
    (dict(groups=3), r'multiple of groups; got groups=3 and widths \(64, 128\)'), (dict(groups=0), 'got groups=0'),
    (dict(width_factors=(1, 0)), '1 or more and a multiple'),
    (dict(se_ratio=65), r'got se_ratio=65 and 64 channels\. Choose a smaller'), (dict(se_ratio=-1), 'got se_ratio=-1')])
def test_groups_and_squeezing_that_the_widths_do_not_allow(options, message):
    with pytest.raises(UserError, match=message):
        get_arch(dict(dict(depths=(1, 2), width_factors=(1, 1)), **options))
