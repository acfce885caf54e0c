"""The device that a user names is one that torch can use here, or is refused in a sentence."""

import pytest
import torch

from repvgg_mm import UserError
from repvgg_mm.openmmlab.device import usable_device


def test_a_device_of_this_machine():
    assert usable_device('cpu') == torch.device('cpu')


@pytest.mark.parametrize('gpu', [True, False])
def test_the_default_is_a_gpu_where_there_is_one(monkeypatch, gpu):
    asked = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch, 'empty', lambda size, device: asked.append(device))
    expected = torch.device('cuda' if gpu else 'cpu')
    assert usable_device(None) == expected
    assert asked == [expected]  # it was tried


@pytest.mark.parametrize('name', ['nonsense', 'cpu:x', 'mps', 'xpu', 'cuda:99'])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UserError, match=rf'torch can use here, and {name} is not \(.+\)\. Use --device cpu') as raised:
        usable_device(name)
    assert '\n' not in str(raised.value)
