"""A training with MMEngine's `compile` is the one without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import TINY
from tool_runs import derived_config, iterations, run_tool, small_data

from repvgg_mm.demo.shapes import make_shapes

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not hasattr(torch.compiler, 'is_compiling'), reason='needs the compiler of torch 2.3 or newer')]


def weights_after(folder: Path, name: str, *options: str) -> dict[str, torch.Tensor]:
    """After two steps with EMA, activations computed again, and parameters with settings of their own."""
    config = derived_config(folder / 'small.py', f"""
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
model = dict(
    data_preprocessor=dict(size=(48, 48)), backbone=dict(with_cp=True, arch=dict(_delete_=True, **{TINY})),
    decode_head=dict(in_channels=64, channels=8), auxiliary_head=dict(in_channels=32, channels=8))
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', paramwise_cfg=dict(norm_decay_mult=0.0),
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))
""")
    run_tool('tools/train.py', config, '--work-dir', folder / name, '--cfg-options',
             *small_data(folder / 'shapes'), *iterations(2), 'randomness.seed=1', *options)
    return torch.load(folder / name / 'iter_2.pth', weights_only=False)['state_dict']


def test_steps_of_a_compiled_training(tmp_path):
    make_shapes(tmp_path / 'shapes', num_train=6, num_val=2, size=48)
    expected = weights_after(tmp_path, 'eager')
    found = weights_after(tmp_path, 'compiled', 'compile.backend=aot_eager')
    assert re.search('Model has been "compiled"', next(tmp_path.glob('compiled/*/*.log')).read_text())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
