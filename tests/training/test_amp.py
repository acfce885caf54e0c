"""Mixed precision without a GPU: bfloat16 in the losses, float32 in what is kept."""

from __future__ import annotations

import pytest
import torch
from helpers import TINY, backbone
from mmengine.config import ConfigDict
from mmengine.registry import OPTIM_WRAPPERS
from torch.testing import assert_close

from repvgg_mm import UserError
from repvgg_mm.training.amp import use_amp

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')


def test_a_step_is_that_of_autocast_in_bfloat16():
    model = backbone(TINY).train()
    wrapper = OPTIM_WRAPPERS.build(dict(
        type='BFloat16OptimWrapper', optimizer=torch.optim.SGD(model.parameters(), lr=0.5)))
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        loss = backbone(TINY).train()(images)[3].square().mean()
    with wrapper.optim_context(model):
        features = model(images)
        ours = features[3].square().mean()
    assert features[3].dtype == torch.bfloat16
    assert_close(ours, loss)
    before = model.stem.branch_3x3.conv.weight.detach().clone()
    wrapper.backward(ours)
    wrapper.step()
    weight = model.stem.branch_3x3.conv.weight
    assert weight.dtype == weight.grad.dtype == torch.float32 and not torch.equal(weight, before)


@no_gpu
@pytest.mark.parametrize('given', [dict(), dict(type='OptimWrapper'), dict(type='AmpOptimWrapper', loss_scale=512.)])
@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_without_a_gpu_it_is_bfloat16(given, dtype):
    wrapper = ConfigDict(given, optimizer=dict(type='SGD', lr=0.1))
    use_amp(wrapper, dtype)
    assert wrapper == dict(type='BFloat16OptimWrapper', optimizer=dict(type='SGD', lr=0.1))


def test_with_a_gpu_it_is_float16_as_in_the_toolboxes(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    wrapper = ConfigDict(type='OptimWrapper')
    use_amp(wrapper, None)
    assert wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    use_amp(wrapper, 'bfloat16')
    assert wrapper == dict(type='BFloat16OptimWrapper')
    wrapper = ConfigDict(type='AmpOptimWrapper', dtype='bfloat16')
    use_amp(wrapper, None)
    assert wrapper.dtype == 'bfloat16'  # the config's own choice
    use_amp(wrapper, 'float16')
    assert wrapper == dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')


@no_gpu
def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r'float16 needs a GPU.*none was found\. Use --amp alone'):
        use_amp(ConfigDict(), 'float16')
    with pytest.raises(UserError, match=r'--amp works with OptimWrapper, and this config has ApexOptimWrapper\. Set'):
        use_amp(ConfigDict(type='ApexOptimWrapper'), None)
