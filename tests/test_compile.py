"""torch.compile without a graph break, torch.export, traces, and activation checkpointing from outside."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers import backbone, randomise_norms
from tool_runs import run_tool
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from repvgg_mm import RepVGG

SMALL = dict(depths=(1, 2, 1, 1), width_factors=(0.125,) * 4, groups=1)
EXACT = dict(rtol=1e-10, atol=1e-10)
INPUTS = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SEES_ALL = hasattr(torch.compiler, 'is_compiling')  # torch 2.3; below it breaks graphs at what it does not know
needs_a_compiler = pytest.mark.skipif(not SEES_ALL, reason='needs the compiler of torch 2.3 or newer')


def model(**options: object) -> RepVGG:
    torch.manual_seed(0)
    return randomise_norms(RepVGG(SMALL, **options)).double()


def step(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, gradients and running statistics after a step."""
    outputs = model(x)
    sum(output.square().mean() for output in outputs).backward()
    original = getattr(model, '_orig_mod', model)
    gradients = [parameter.grad for parameter in original.parameters() if parameter.grad is not None]
    return [*outputs, *gradients, *(buffer.double() for buffer in original.buffers())]


@needs_a_compiler
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('options', [
    dict(zip(('with_cp', 'norm_eval', 'frozen_stages'), values))
    for values in itertools.product((False, True), (False, True), (-1, 1))
] + [dict(deploy=True), dict(deploy=True, with_cp=True)])
def test_no_graph_break_and_equal_steps(options, training):
    torch._dynamo.reset()
    eager = model(**options).train(training)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend='aot_eager')
    for _ in range(2):
        for found, expected in zip(step(compiled, INPUTS), step(eager, INPUTS), strict=True):
            torch.testing.assert_close(found, expected, **EXACT)


@needs_a_compiler
def test_a_compiled_evaluation_follows_the_parameters():
    """A kernel that was kept before must not become a constant of the graph."""
    torch._dynamo.reset()
    eager = model().eval()
    with torch.no_grad():
        eager(INPUTS)
        compiled = torch.compile(eager, fullgraph=True, backend='aot_eager')
        compiled(INPUTS)
        for parameter in eager.parameters():
            parameter.data.mul_(1.1)
        for found, expected in zip(compiled(INPUTS), copy.deepcopy(eager)(INPUTS), strict=True):
            torch.testing.assert_close(found, expected, **EXACT)


@needs_a_compiler
@pytest.mark.parametrize('deploy', [False, True])
def test_an_exported_program(deploy):
    eager = model(deploy=deploy).eval()
    program = torch.export.export(eager, (INPUTS,))
    for found, expected in zip(program.module()(INPUTS), eager(INPUTS), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize('deploy', [False, True])
def test_a_trace(deploy):
    eager = model(deploy=deploy).eval()
    with torch.no_grad():
        traced = torch.jit.trace(eager, INPUTS)
        other = torch.randn(1, 3, 32, 48, dtype=torch.float64)
        for found, expected in zip(traced(other), eager(other), strict=True):
            torch.testing.assert_close(found, expected, **EXACT)


class Recomputed(torch.nn.Module):
    """A backbone whose stages are checkpointed from outside."""

    def __init__(self, inner: RepVGG, reentrant: bool) -> None:
        super().__init__()
        self.inner = inner
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for name in ('stem', *self.inner.stages):
            x = checkpoint(getattr(self.inner, name), x, use_reentrant=self.reentrant)
            features.append(x)
        return tuple(features[1:])


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('with_cp', [False, True])
def test_recomputation_from_outside_updates_the_statistics_once(with_cp, reentrant):
    eager = model().train()
    recomputed = Recomputed(copy.deepcopy(eager), reentrant)
    for block in recomputed.inner.modules():
        if hasattr(block, 'with_cp'):
            block.with_cp = with_cp
    for _ in range(2):
        found = step(recomputed, INPUTS.clone().requires_grad_())
        expected = step(eager, INPUTS.clone().requires_grad_())
        for pair in zip(found, expected, strict=True):
            torch.testing.assert_close(*pair, **EXACT)


def test_a_forward_pass_outside_of_a_backward_one_counts():
    """The rule that tells recomputation from a step: it runs within a backward pass."""
    training = backbone().train()
    before = training.stem.branch_3x3.norm.num_batches_tracked.clone()
    training(torch.randn(2, 3, 32, 32))
    assert training.stem.branch_3x3.norm.num_batches_tracked == before + 1


def test_the_table_of_a_gpu_is_made_on_a_cpu_too():
    output = run_tool('benchmarks/gpu_step.py', 'A0', '--device', 'cpu', '--size', 64, '--images', 2, '--rounds', 2,
                      '--dtypes', 'float32', '--modes', 'eager').stdout
    rows = [line.split(' | ')[:2] for line in output.splitlines() if line.startswith('| A0, ')]
    assert ['| A0, step, float32, eager', 'training form'] in rows
    assert ['| A0, evaluation, float32, eager', 'deploy form'] in rows
