"""The sum of the branches with batch statistics, computed together: equal to the branches one by one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from helpers import block, branch_sum, image
from tool_runs import run_tool
from torch import Tensor, nn
from torch.testing import assert_close

from repvgg_mm.benchmark.benchmark import saved_bytes
from repvgg_mm.block import RepVGGBlock, branch_by_branch
from repvgg_mm.convert.compare import relative_error

SHAPES = dict(
    identity=dict(identity=True),
    grouped=dict(identity=True, groups=2, dilation=2),
    stride=dict(out_channels=12, groups=2, stride=2),
    no_identity=dict(),
    stem=dict(in_channels=3, stride=2),
    momentum=dict(identity=True, norm=lambda channels: nn.BatchNorm2d(channels, momentum=None, eps=1e-3)),
    se=dict(identity=True, se_channels=4),
    checkpointed=dict(identity=True, with_cp=True))


def step(model: RepVGGBlock, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output, gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    out = model(x)
    weights = image(*out.shape, seed=7).to(out.dtype)
    return out, torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])


@pytest.mark.parametrize('name', SHAPES)
def test_output_gradients_and_statistics_are_those_of_the_branches(name, monkeypatch):
    together = block(**SHAPES[name]).train()
    apart = copy.deepcopy(together)
    x = image(3, together.branch_3x3.conv.in_channels, 9, 11) + 0.5
    monkeypatch.setattr(nn.functional, 'batch_norm', None)  # nobody may ask a norm
    for _ in range(2):
        out, grads = step(together, x)
    monkeypatch.undo()
    with branch_by_branch(apart):
        for _ in range(2):
            expected, expected_grads = step(apart, x)
    assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)
    assert_close(dict(together.named_buffers()), dict(apart.named_buffers()), rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    model = block(4, 4, identity=True, groups=2).train()
    assert torch.autograd.gradcheck(model.convolve, image(2, 4, 5, 5).requires_grad_())


@pytest.mark.parametrize('offset', [0, 10])
def test_float32_is_as_good_as_the_branches_far_from_zero_mean(offset):
    model = block(16, 16, identity=True, dtype=torch.float32).train()
    x = image(4, 16, 40, 40, dtype=torch.float32) + offset
    exact = branch_sum(copy.deepcopy(model).double(), x.double())
    assert_close(model(x).double(), exact, rtol=1e-4, atol=1e-4)


def test_frozen_parameters_and_input_get_no_gradient():
    model = block(identity=True).train().requires_grad_(False)
    model.branch_1x1.conv.weight.requires_grad_()
    model(image(2, 8, 6, 6)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ['branch_1x1.conv.weight']


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_gives_channels_last(memory_format):
    model = block(8, 12, stride=2, dtype=torch.float32).train()
    x = image(2, 8, 9, 11, dtype=torch.float32).to(memory_format=memory_format)
    expected = branch_sum(copy.deepcopy(model), x)
    out = model(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, expected)


STEM = """
import torch
from repvgg_mm.benchmark.benchmark import saved_bytes
from repvgg_mm.block import RepVGGBlock, branch_by_branch
from repvgg_mm.convert.compare import relative_error
stem = RepVGGBlock(3, 48, stride=2).train()
x = torch.randn(2, 3, 256, 256).to(memory_format=torch.channels_last)
for _ in range(4):
    stem(x).mean().backward()
    with branch_by_branch(stem):
        stem(x).mean().backward()
    with torch.autocast('cpu', torch.bfloat16):
        stem(x).mean().backward()
"""


def test_a_stem_in_channels_last_does_not_crash_the_process():
    subprocess.run([sys.executable, '-c', STEM], check=True, env={**os.environ, 'MALLOC_CHECK_': '3'})


def test_saves_no_more_than_a_plain_convolution_with_batchnorm():
    x = image(2, 8, 64, 64).requires_grad_()
    plain = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()).double()
    ours = block(identity=True).train()
    assert saved_bytes(ours, x) <= 1.01 * saved_bytes(plain, x)
    with branch_by_branch(ours):
        assert saved_bytes(ours, x) >= 1.3 * saved_bytes(plain, x)  # what it saves


@pytest.mark.parametrize('change', ['reflect', 'one_frozen', 'half', 'sync'])
def test_falls_back_to_the_branches(change, monkeypatch):
    model = block(identity=True, dtype=torch.bfloat16 if change == 'half' else torch.float32,
                  padding_mode='reflect' if change == 'reflect' else 'zeros').train()
    x = image(2, 8, 8, 8, dtype=model.branch_3x3.conv.weight.dtype)
    if change == 'one_frozen':
        model.branch_norm.eval()
    if change == 'sync':  # one process without a GPU: torch computes it as BatchNorm
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    expected = branch_sum(copy.deepcopy(model), x)
    monkeypatch.setattr('repvgg_mm.block.branch_sum', None)
    assert_close(model(x), expected)


@pytest.mark.parametrize('name', ['identity', 'grouped', 'stride', 'checkpointed'])
def test_autocast_computes_in_bfloat16_and_keeps_float32(name, monkeypatch):
    options = dict(dtype=torch.float32, act=nn.Identity, **SHAPES[name])  # a ReLU may round to the other side
    together, exact = block(**options).train(), block(**options).double().train()
    x = image(3, together.branch_3x3.conv.in_channels, 9, 11, dtype=torch.float32)
    monkeypatch.setattr(nn.functional, 'batch_norm', None)
    with torch.autocast('cpu', torch.bfloat16):
        out, grads = step(together, x)
    monkeypatch.undo()
    expected, expected_grads = step(exact, x.double())
    assert out.dtype == torch.bfloat16 and {grad.dtype for grad in grads} == {torch.float32}
    assert relative_error(expected, out) < 0.02
    for grad, expected_grad in zip(grads, expected_grads):
        assert relative_error(expected_grad, grad) < 0.05
    for name, buffer in together.named_buffers():
        assert_close(buffer.double(), dict(exact.named_buffers())[name].double(), rtol=0.02, atol=0.02)


def test_one_value_a_channel_is_torchs_error():
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        block(8, 12, stride=2).train()(image(1, 8, 2, 2))


def test_a_second_derivative_is_refused():
    """The backward pass is written by hand; without a word torch would differentiate half of it."""
    x = image(2, 8, 8, 8).requires_grad_()
    first, = torch.autograd.grad(block(identity=True).train()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()


def test_the_table_of_other_ways():
    output = run_tool('benchmarks/branch_sum_ways.py', 'A0', '--size', 64, '--rounds', 2).stdout
    rows = [line.split(' | ') for line in output.splitlines() if line.startswith('| A0 | ')]
    assert len(rows) == 7
    for row in rows:
        assert float(row[-1].strip(' |')) < 1e-10, row  # gradients in float64
