"""Blocks of other libraries and home-made ones are fused in a whole model; what is unknown is left alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from helpers import TINY, image, pspnet, randomise_norms
from tool_runs import ROOT, derived_config, iterations, metric, run_peer, small_data
from torch import nn
from torch.testing import assert_close

from repvgg_mm import Branch, FusedBlock, Parts, RepVGGBlock, UserError, fusible, whole_model_convert
from repvgg_mm.convert.foreign import READERS
from repvgg_mm.demo.shapes import make_shapes

TIMM = [  # the smallest of each family with a fusing method; all of them: tests/programs/timm_fusing.py without names
    'fastvit_t8', 'repvit_m0_9', 'efficientvit_m0', 'shvit_s1', 'tiny_vit_5m_224', 'levit_128s', 'nextvit_small',
    'efficientvim_m1', 'iformer_t', 'lcnetv2_small', 'mobileone_s0', 'repvgg_a0', 'repghostnet_050', 'ghostnetv3_050']


class HomeMade(nn.Module):
    """norm(conv5x5(x)) + 0.5 norm(conv3x3(x)) + norm(x), dilated, then a tail."""

    def __init__(self, groups: int = 2, padding: int = 2) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=groups)
        self.small = nn.Conv2d(8, 8, 3, padding=padding, dilation=2, groups=groups, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.act = nn.Hardswish()

    def forward(self, x):
        return self.act(self.norms[0](self.wide(x)) + 0.5 * self.norms[1](self.small(x)) + self.norms[2](x))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr('repvgg_mm.convert.foreign.READERS', dict(READERS))

    @fusible(f'{__name__}.HomeMade')
    def parts(block):
        norms = block.norms
        return Parts([Branch(block.wide, norms[0]), Branch(block.small, norms[1], 0.5), Branch(None, norms[2])],
                     dict(act=block.act))


@pytest.mark.parametrize('groups', [1, 2, 8])
def test_a_home_made_block_of_any_odd_kernels(registered, groups):
    torch.manual_seed(0)
    model = randomise_norms(nn.Sequential(HomeMade(groups), nn.Conv2d(8, 3, 1))).double().eval()
    before = copy.deepcopy(model)
    deploy = whole_model_convert(model)
    assert isinstance(deploy[0], FusedBlock) and deploy[0].branch_reparam.kernel_size == (5, 5)
    assert_close(deploy(image(2, 8, 12, 12)), before(image(2, 8, 12, 12)), rtol=1e-10, atol=1e-10)
    assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    again = whole_model_convert(deploy)
    assert_close(again.state_dict(), deploy.state_dict(), rtol=0, atol=0)


def test_a_block_that_is_the_model_or_stands_in_two_places(registered):
    block = randomise_norms(HomeMade()).double().eval()
    x = image(1, 8, 9, 9)
    assert_close(whole_model_convert(block)(x), block(x), rtol=1e-10, atol=1e-10)
    twice = nn.Sequential(block, block)
    deploy = whole_model_convert(twice)
    assert deploy[0] is deploy[1]
    assert_close(deploy(x), twice(x), rtol=1e-10, atol=1e-10)


def test_subclasses_and_a_mix_with_our_own(registered):
    class Derived(HomeMade):
        pass

    model = pspnet(TINY).double()
    model.extra = randomise_norms(Derived()).double().eval()
    deploy = whole_model_convert(model)
    assert isinstance(deploy.extra, FusedBlock) and deploy.backbone.deploy
    assert_close(deploy.extra(image(1, 8, 9, 9)), model.extra(image(1, 8, 9, 9)), rtol=1e-10, atol=1e-10)


def test_all_or_nothing_with_the_blocks_name(registered):
    model = nn.ModuleDict(dict(good=HomeMade(), ours=pspnet(TINY), bad=HomeMade(padding=1)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r'bad: Branches are one convolution only if .* centred on the same pixel'):
        whole_model_convert(model, inplace=True)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    model['bad'] = HomeMade()
    model['bad'].norms[1].running_var[3] = -1
    with pytest.raises(UserError, match=r'bad: Running statistics .* branch 1 .* channel 3'):
        whole_model_convert(model, inplace=True)
    assert model['ours'].backbone.deploy is False and isinstance(model['good'], HomeMade)


def test_a_subclass_with_a_forward_of_its_own_is_mentioned_and_left_alone(registered):
    class Doubled(HomeMade):
        def forward(self, x):
            return 2 * super().forward(x)

    model = randomise_norms(nn.Sequential(HomeMade(), Doubled())).double().eval()
    with pytest.warns(UserWarning, match=r'Left as they are.*: 1 \(.*Doubled\)\. Register their type') as caught:
        deploy = whole_model_convert(model)
    assert isinstance(deploy[0], FusedBlock) and isinstance(deploy[1], Doubled)
    assert [str(one.message).partition(':')[0] for one in caught] == [
        'Left as they are, because nothing says how to fuse them',
        'BatchNorms that are left beside the fused blocks, no part of one']
    assert_close(deploy(image(1, 8, 9, 9)), model(image(1, 8, 9, 9)), rtol=1e-10, atol=1e-10)


def test_an_unknown_switch_is_mentioned_and_left_alone():
    class Unknown(nn.Conv2d):
        def switch_to_deploy(self):
            raise AssertionError('called')

    model = nn.ModuleDict(dict(ours=pspnet(TINY), other=Unknown(3, 3, 1)))
    with pytest.warns(UserWarning, match=r'Left as they are.*: other \(.*Unknown\)\. Register their type'):
        whole_model_convert(model)


@pytest.mark.peers
@pytest.mark.stack
def test_models_of_other_libraries_compute_the_same(tmp_path):
    run_peer('tests/programs/foreign_reference.py', tmp_path / 'errors.json')
    errors = json.loads((tmp_path / 'errors.json').read_text())
    assert len(errors) == 27
    assert all(error <= (1e-10 if 'float64' in name else 1e-5) for name, error in errors.items()), errors


@pytest.mark.peers
def test_every_family_of_timm_is_fused_as_far_as_timm_fuses_it():
    done = run_peer('tests/programs/timm_fusing.py', *TIMM)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    assert [one['name'] for one in results] == TIMM
    for one in results:
        assert one['error'] <= 1e-10 and one['ours'] <= one['theirs'] < one['before'], one
        assert (one['norms'] == 0) == (not one['said']), one


@pytest.mark.peers
@pytest.mark.stack
def test_blocks_and_models_of_mmyolo_and_mmpose_compute_the_same(tmp_path):
    run_peer('tests/programs/openmmlab_reference.py', tmp_path / 'errors.json')
    errors = json.loads((tmp_path / 'errors.json').read_text())
    assert len(errors) == 46
    assert all(error <= (1e-10 if 'float64' in name else 1e-5) for name, error in errors.items()), errors


TIMM_BACKBONE = """
model = dict(
    backbone=dict(_delete_=True, type='TIMMBackbone', model_name='repvgg_a0', features_only=True, pretrained=False),
    decode_head=dict(in_index=4), auxiliary_head=dict(in_index=3))
"""


@pytest.mark.peers
def test_the_tools_convert_a_segmentor_with_timms_backbone(tmp_path):
    data = small_data(make_shapes(tmp_path / 'data', num_train=8, num_val=4))
    config = derived_config(tmp_path / 'timm.py', TIMM_BACKBONE)
    run_peer('tools/train.py', config, '--work-dir', tmp_path / 'train', '--cfg-options', *data, *iterations(2))
    checkpoint = tmp_path / 'train' / 'iter_2.pth'
    result = run_peer('tools/convert_whole.py', config, checkpoint, '--out', tmp_path / 'deploy')
    assert '22 RepVGG blocks fused' in result.stdout
    for name, pair in dict(training=[config, checkpoint],
                           tested=[tmp_path / 'deploy/deploy.py', tmp_path / 'deploy/deploy.pth']).items():
        run_peer('tools/test.py', *pair, '--work-dir', tmp_path / name, '--cfg-options',
                 *(option for option in data if not option.startswith('train')))
    assert metric(tmp_path / 'tested') == metric(tmp_path / 'training')


def test_the_example_of_the_readme():
    text = (ROOT / 'docs/convert.md').read_text().split('## Blocks of other libraries')[1]
    code = text.split('```python')[1].split('```')[0]
    names = dict(__name__='example')
    exec(code, names)
    model = randomise_norms(names['Net']()).double().eval()
    deploy = whole_model_convert(model)
    assert isinstance(deploy.block, FusedBlock)
    assert_close(deploy(image(1, 8, 9, 9)), model(image(1, 8, 9, 9)), rtol=1e-10, atol=1e-10)


def test_nothing_is_changed_where_a_block_of_ours_is_refused(registered):
    """Also in place, where what is changed is the caller's model."""
    model = nn.Sequential(HomeMade(), RepVGGBlock(8, 8))
    model[1].branch_3x3.norm.running_var[0] = -1
    before = list(model.modules())
    with pytest.raises(UserError, match=r'^1.*variance'):
        whole_model_convert(model, inplace=True)
    assert list(model.modules()) == before
