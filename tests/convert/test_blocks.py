"""Which blocks are in a model, in which form."""

from __future__ import annotations

from helpers import TINY, backbone, block
from torch import nn

from repvgg_mm import Branch, Parts, fusible, whole_model_convert
from repvgg_mm.convert import foreign
from repvgg_mm.convert.blocks import blocks_of, fusible_or_fused, has_branches, named_branches, unknown_switches


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x))


class Switching(nn.Module):
    def switch_to_deploy(self):
        raise AssertionError('nobody may call it')


def test_blocks_of_both_kinds_in_both_forms(monkeypatch):
    monkeypatch.setattr(foreign, 'READERS', dict(foreign.READERS))
    fusible(f'{__name__}.Foreign')(lambda found: Parts([Branch(found.conv, found.norm)], {}))
    model = nn.Sequential(block(4, 4), Foreign()).float()
    assert [name for name, _ in named_branches(model)] == ['0', '1']
    assert has_branches(model) and fusible_or_fused(model)
    assert blocks_of(model) == [model[0]]  # a block of another library counts once it is fused

    converted = whole_model_convert(model)
    assert len(blocks_of(converted)) == 2
    assert not has_branches(converted) and fusible_or_fused(converted)


def test_every_branch_of_a_backbone_is_named():
    model = backbone(TINY)
    branches = dict(named_branches(model))
    assert len(branches) == len(blocks_of(model)) == 9
    assert [branch.conv is None for branch in branches['stage_2.1']] == [False, False, True]
    assert [branch.conv.kernel_size for branch in branches['stem']] == [(3, 3), (1, 1)]


def test_what_looks_fusible_and_is_not_known_is_named():
    model = nn.ModuleDict(dict(known=block(4, 4), other=Switching()))
    assert unknown_switches(model) == [f'other ({__name__}.Switching)']
    assert not fusible_or_fused(nn.Sequential(nn.Conv2d(1, 1, 1)))
