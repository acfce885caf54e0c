"""How a config describes the deploy form, and how its training form is found again."""

from __future__ import annotations

import pytest
import torch
from helpers import TINY, pspnet_config, randomise_norms
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from repvgg_mm.block import named_blocks
from repvgg_mm.convert.blocks import blocks_of, has_branches
from repvgg_mm.deploy.config import DEPLOY_FORM, deploy_config, use_training_form
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack


@pytest.fixture
def cfg() -> Config:
    model = pspnet_config(TINY, init_cfg=dict(type='Pretrained', checkpoint='a.pth'), norm_cfg=dict(type='SyncBN'))
    model['pretrained'] = 'b.pth'
    model['decode_head']['init_cfg'] = dict(type='Normal', std=0.01)
    return Config(dict(model=model, default_scope='mmseg', load_from='c.pth', resume=True, weights='d.pth'))


def test_the_deploy_form_needs_no_other_file_and_no_gpu(cfg):
    before = cfg.pretty_text
    found = deploy_config(cfg)
    text = found.pretty_text
    assert not any(name in text for name in ('a.pth', 'b.pth', 'c.pth', 'd.pth', 'init_cfg', 'pretrained', 'SyncBN'))
    assert found.load_from is None and found.resume is False
    assert found.model.backbone.deploy is True
    assert cfg.pretty_text == before  # the given one is as it was
    model = build_model(found)
    assert not has_branches(model) and all(block.deploy for _, block in named_blocks(model))


def test_the_file_imports_what_it_names(cfg):
    assert deploy_config(cfg).custom_imports == dict(imports=['repvgg_mm'], allow_failed_imports=False)
    cfg.custom_imports = dict(imports=['mine', 'repvgg_mm'])
    assert deploy_config(cfg).custom_imports.imports == ['mine', 'repvgg_mm']


def test_timms_backbones_download_by_default():
    model = dict(type='A', backbone=dict(type='mmpretrain.TIMMBackbone', model_name='repvgg_a0'))
    assert deploy_config(Config(dict(model=model))).model.backbone.pretrained is False


def test_the_training_form_comes_back(cfg):
    found = deploy_config(cfg)
    use_training_form(found)
    assert found.model.backbone.deploy is False
    found.model = dict(type=DEPLOY_FORM, model=deploy_config(cfg).model)
    use_training_form(found)
    assert found.model.type == 'EncoderDecoder' and found.model.backbone.deploy is False
    assert has_branches(build_model(found))


class TwoBranches(nn.Module):
    """A block of a user's library, see `repvgg_mm.fusible`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_norm(self.conv(x)) + self.norm(x)


def test_blocks_of_other_libraries_get_their_deploy_form(monkeypatch):
    from repvgg_mm import Branch, Parts
    from repvgg_mm.convert import foreign

    def reader(block: TwoBranches) -> Parts:
        return Parts([Branch(block.conv, block.conv_norm), Branch(None, block.norm)], {})

    monkeypatch.setitem(foreign.READERS, f'{TwoBranches.__module__}.TwoBranches', reader)
    monkeypatch.setitem(MODELS._module_dict, 'TwoBranches', TwoBranches)
    torch.manual_seed(0)
    trained = randomise_norms(MODELS.build(dict(type='TwoBranches'))).eval()
    converted, _ = foreign.replace_foreign_blocks(trained)

    rebuilt = MODELS.build(dict(type=DEPLOY_FORM, model=dict(type='TwoBranches'))).eval()
    assert len(blocks_of(rebuilt)) == 1 and not has_branches(rebuilt)
    rebuilt.load_state_dict(converted.state_dict())
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(rebuilt(image), trained(image))
