"""Names: every layout against lists written out by hand, and back."""

from __future__ import annotations

import pytest
import torch
from helpers import TINY, TINY_PSE, TINY_SE, backbone

from repvgg_mm import UserError
from repvgg_mm.layouts import COLUMNS, form_of, from_native, to_native

NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')

# Native name, official, timm; written out from the projects' published files.
NAMES = [
    ('stem.branch_3x3.conv.weight', 'stage0.rbr_dense.conv.weight', 'stem.conv_kxk.conv.weight'),
    ('stem.branch_3x3.norm.running_mean', 'stage0.rbr_dense.bn.running_mean', 'stem.conv_kxk.bn.running_mean'),
    ('stem.branch_1x1.conv.weight', 'stage0.rbr_1x1.conv.weight', 'stem.conv_1x1.conv.weight'),
    ('stem.branch_1x1.norm.num_batches_tracked', 'stage0.rbr_1x1.bn.num_batches_tracked',
     'stem.conv_1x1.bn.num_batches_tracked'),
    ('stage_1.0.branch_3x3.conv.weight', 'stage1.0.rbr_dense.conv.weight', 'stages.0.0.conv_kxk.conv.weight'),
    ('stage_1.1.branch_norm.weight', 'stage1.1.rbr_identity.weight', 'stages.0.1.identity.weight'),
    ('stage_1.0.se_layer.conv1.conv.weight', 'stage1.0.se.down.weight', 'stages.0.0.attn.fc1.weight'),
    ('stage_1.0.se_layer.conv2.conv.bias', 'stage1.0.se.up.bias', 'stages.0.0.attn.fc2.bias'),
    ('stage_3.13.branch_1x1.norm.running_var', 'stage3.13.rbr_1x1.bn.running_var',
     'stages.2.13.conv_1x1.bn.running_var'),
    ('stage_4.0.branch_reparam.weight', 'stage4.0.rbr_reparam.weight', 'stages.3.0.reparam_conv.weight'),
    ('stem.branch_reparam.bias', 'stage0.rbr_reparam.bias', 'stem.reparam_conv.bias'),
]

# Native name and RepVGGplus's, for a stage 3 of which the first half has two blocks.
PLUS_NAMES = [
    ('stem.branch_3x3.conv.weight', 'stage0.rbr_dense.conv.weight'),
    ('stage_1.0.branch_3x3.conv.weight', 'stage1.blocks.0.rbr_dense.conv.weight'),
    ('stage_2.1.branch_norm.bias', 'stage2.blocks.1.rbr_identity.bias'),
    ('stage_3.0.branch_1x1.conv.weight', 'stage3_first.blocks.0.rbr_1x1.conv.weight'),
    ('stage_3.1.branch_1x1.conv.weight', 'stage3_first.blocks.1.rbr_1x1.conv.weight'),
    ('stage_3.2.se_layer.conv1.conv.weight', 'stage3_second.blocks.0.post_se.down.weight'),
    ('stage_3.3.se_layer.conv2.conv.bias', 'stage3_second.blocks.1.post_se.up.bias'),
    ('stage_4.0.branch_reparam.bias', 'stage4.blocks.0.rbr_reparam.bias'),
]
LISTS = {
    'native': [(native, native) for native, *_ in NAMES],
    'official': [(native, official) for native, official, _ in NAMES],
    'timm': [(native, timm) for native, _, timm in NAMES],
    'timm, features_only': [(native, timm.replace('stages.', 'stages_')) for native, _, timm in NAMES],
    'RepVGGplus': PLUS_NAMES,
}
PREFIXES = ['', 'backbone.', 'module.', '_orig_mod.', 'module.backbone.', 'backbone.timm_model.', '_orig_mod.module.']
OTHERS = ['linear.weight', 'head.fc.bias', 'stage1_aux.2.weight', 'decode_head.conv_seg.weight']


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('layout', LISTS)
def test_every_name_becomes_the_native_one(layout, prefix):
    file = {prefix + own: torch.tensor(float(number)) for number, (_, own) in enumerate(LISTS[layout])}
    others = {name: torch.tensor(-1.) for name in OTHERS}
    found = to_native(others | file)
    assert {name: tensor.item() for name, tensor in found.tensors.items()} == {
        native: number for number, (native, _) in enumerate(LISTS[layout])}
    assert found.others == OTHERS and found.prefix == prefix
    assert found.layout == layout.split(',')[0]


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('arch', [TINY, TINY_SE, TINY_PSE], ids=['plain', 'se', 'pse'])
@pytest.mark.parametrize('layout', COLUMNS)
def test_there_and_back(layout, arch, deploy):
    native = backbone(arch, deploy=deploy).state_dict()
    renamed = from_native(native, layout)
    assert len(renamed) == len(native) and (layout == 'native' or not set(renamed) & {
        name for name in native if not name.startswith('stem.se_layer')})
    found = to_native(renamed)
    assert list(found.tensors) == list(native) and found.others == []
    for name, tensor in native.items():
        assert found.tensors[name] is renamed[list(renamed)[list(native).index(name)]]
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0)


def test_names_of_the_official_layout_written_out():
    arch = dict(depths=(1, 2), width_factors=(0.125, 0.125))
    native = backbone(arch, out_indices=(1,), strides=(2, 2), dilations=(1, 1)).state_dict()
    expected = [f'{block}.{part}' for block, parts in {
        'stage0': ('rbr_dense', 'rbr_1x1'), 'stage1.0': ('rbr_dense', 'rbr_1x1'), 'stage2.0': ('rbr_dense', 'rbr_1x1'),
        'stage2.1': ('rbr_dense', 'rbr_1x1', 'rbr_identity')}.items()
        for branch in parts for part in (
            [f'{branch}.{tensor}' for tensor in NORM] if branch == 'rbr_identity' else
            [f'{branch}.conv.weight', *(f'{branch}.bn.{tensor}' for tensor in NORM)])]
    assert sorted(from_native(native, 'official')) == sorted(expected)


def test_of_two_backbones_the_usual_one_is_read():
    file = {f'{prefix}stem.branch_3x3.conv.weight': torch.tensor(number)
            for number, prefix in enumerate(['ema_backbone.', 'backbone.', 'teacher.'])}
    found = to_native(file)
    assert found.prefix == 'backbone.' and [tensor.item() for tensor in found.tensors.values()] == [1]
    assert found.others == ['ema_backbone.stem.branch_3x3.conv.weight', 'teacher.stem.branch_3x3.conv.weight']


def test_two_backbones_of_which_none_is_usual():
    file = {f'{prefix}.stem.branch_3x3.conv.weight': torch.ones(1) for prefix in ('student', 'teacher')}
    with pytest.raises(UserError, match=r"one RepVGG, and this one has 2: student\., teacher\.\. .*prefix=\.\.\.\)"):
        to_native(file)


def test_one_tensor_under_two_names():
    file = {'stage0.rbr_dense.conv.weight': torch.ones(1), 'stem.conv_kxk.conv.weight': torch.ones(1)}
    with pytest.raises(UserError, match=r'stage0\.rbr_dense\.conv\.weight and stem\.conv_kxk\.conv\.weight are both'):
        to_native(file)


@pytest.mark.parametrize('names, form', [
    (['stage0.rbr_dense.conv.weight'], 'training'), (['x.stages.0.1.conv_kxk.conv.weight'], 'training'),
    (['backbone.stage_1.0.branch_reparam.weight'], 'deploy'), (['stem.reparam_conv.bias'], 'deploy'),
    (['stage1.blocks.0.rbr_reparam.bias'], 'deploy'), (['decode_head.conv.weight'], None), ([], None),
    (['layer1.0.conv1.weight', 'stem.0.weight', 'stem.conv.weight'], None)])
def test_form(names, form):
    assert form_of(dict.fromkeys(names)) == form


def test_of_a_bare_backbone_and_one_in_a_model_the_bare_one_counts():
    bare, inside = ({f'stem.{name}': tensor for name, tensor in backbone().stem.state_dict().items()} for _ in range(2))
    both = {f'backbone.{name}': tensor for name, tensor in inside.items()} | bare
    found = to_native(both)
    assert found.prefix == '' and all(found.tensors[name] is bare[name] for name in bare)
    assert sorted(found.others) == sorted(f'backbone.{name}' for name in inside)


def test_a_prefix_that_looks_like_a_part_of_another_layout():
    for layout in ('native', 'timm', 'official'):
        tensors = {f'blocks.0.{name}': tensor for name, tensor in from_native(backbone().state_dict(), layout).items()}
        expected = 'RepVGGplus' if layout == 'official' else layout
        assert to_native(tensors).layout == expected
