"""`tools/benchmark.py`: its arguments; what is measured is tested in tests/report."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from repvgg_mm import UserError
from repvgg_mm.__main__ import run
from repvgg_mm.commands.benchmark import random_images


def test_images_are_as_asked_for():
    asked = dict(batch=2, shape=(6, 10), device='cpu', dtype='bfloat16', channels_last=True)
    images = random_images(Namespace(**asked))
    assert images.shape == (2, 3, 6, 10) and images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert random_images(Namespace(**asked | dict(channels_last=False))).is_contiguous()
    of_an_engine = random_images(Namespace(**asked | dict(device='tensorrt')), of_models=False)
    assert of_an_engine.device.type == 'cpu'


@pytest.mark.skipif(torch.cuda.is_available(), reason='torch has a GPU')
def test_models_beside_a_tensorrt_engine_are_on_cuda():
    asked = dict(batch=1, shape=(6, 10), device='tensorrt:1', dtype='float32', channels_last=False)
    with pytest.raises(UserError, match=r'one that torch can use here, and cuda:1 is not'):
        random_images(Namespace(**asked))


@pytest.mark.parametrize('arguments, message', [
    (('--rounds', '1'), 'needs two rounds or more'), (('--batch', '0'), 'one image or more'),
    (('--shape', '0', '8'), 'a pixel or more on each side'), (('--plot', 'a.txt'), r'--plot names a file in \.png'),
    (('--report', 'a.txt'), r'--report names a file in \.html'),
    (('--json', 'a.txt'), r'--json names a file in \.json')])
def test_mistakes_are_found_before_a_model_is_built(arguments, message):
    with pytest.raises(UserError, match=message):
        run(['benchmark', 'absent.py', *arguments])
