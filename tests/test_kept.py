"""The kernel that evaluation keeps between calls is never a stale one."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import randomise_norms
from tool_runs import run_tool
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from repvgg_mm.block import RepVGGBlock, branch_by_branch

EXACT = dict(rtol=1e-10, atol=1e-10)
INPUTS = torch.randn(2, 8, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def new_block(seed: int = 0, channels: int = 8, dtype: torch.dtype = torch.float64) -> RepVGGBlock:
    torch.manual_seed(seed)
    block = RepVGGBlock(channels, channels, identity=True, groups=2)
    randomise_norms(block)
    for _, norm in block._named_norms():
        norm.weight.data *= 1 + seed
    return block.to(dtype).eval()


@torch.no_grad()
def evaluated(block: RepVGGBlock) -> Tensor:
    return block(INPUTS.to(block.branch_3x3.conv.weight.dtype))


def truth(block: RepVGGBlock) -> Tensor:
    with branch_by_branch(block):
        return evaluated(block)


def used(block: RepVGGBlock) -> RepVGGBlock:
    """After two calls, of which the second takes the kernel that the first has made."""
    torch.testing.assert_close(evaluated(block), truth(block), **EXACT)
    kept = block._kept
    torch.testing.assert_close(evaluated(block), truth(block), **EXACT)
    assert kept is not None and block._kept is kept
    return block


def step(optimizer: Callable[..., torch.optim.Optimizer], **options: object) -> Callable[[RepVGGBlock], None]:
    def change(block: RepVGGBlock) -> None:
        for parameter in block.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(block.parameters(), lr=0.1, **options).step()
    return change


@torch.no_grad()
def step_by_hand(block: RepVGGBlock) -> None:
    for parameter in block.parameters():
        parameter.sub_(0.1)


def swap_through_data(block: RepVGGBlock) -> None:
    """As MMEngine's EMAHook does it."""
    for mine, other in zip(block.parameters(), new_block(1).parameters()):
        kept = mine.data.clone()
        mine.data.copy_(other.data)
        other.data.copy_(kept)


def swap_kernels_through_data(block: RepVGGBlock) -> None:
    """With norms that are frozen."""
    for branch in ('branch_3x3', 'branch_1x1'):
        getattr(block, branch).conv.weight.data.copy_(getattr(new_block(1), branch).conv.weight.data)


def replace_memory(block: RepVGGBlock) -> None:
    weight = block.branch_1x1.conv.weight
    block.before = weight.data  # its numbers stay what they are
    weight.data = new_block(1).branch_1x1.conv.weight.data


def replace_parameter(block: RepVGGBlock) -> None:
    block.branch_3x3.conv.weight = nn.Parameter(new_block(1).branch_3x3.conv.weight.detach())


def replace_buffer(block: RepVGGBlock) -> None:
    block.branch_norm.running_var = block.branch_norm.running_var * 2


def replace_norm(block: RepVGGBlock) -> None:
    block.branch_1x1.norm = new_block(1).branch_1x1.norm


def write_one_number_of_a_norm(block: RepVGGBlock) -> None:
    block.branch_norm.bias.data[3] = 5


def change_eps(block: RepVGGBlock) -> None:
    block.branch_3x3.norm.eps = 0.5


def load_all(block: RepVGGBlock) -> None:
    block.load_state_dict(new_block(1).state_dict())


def load_a_branch(block: RepVGGBlock) -> None:
    block.branch_1x1.load_state_dict(new_block(1).branch_1x1.state_dict())


def assign_a_branch(block: RepVGGBlock) -> None:
    block.branch_1x1.load_state_dict(new_block(1).branch_1x1.state_dict(), assign=True)


def train_a_step(block: RepVGGBlock) -> None:
    block.train()
    block(INPUTS)
    block.eval()


def statistics_of_one_norm(block: RepVGGBlock) -> None:
    """Its running statistics are updated while the block stays in evaluation."""
    block.branch_1x1.norm.train()(INPUTS)
    block.branch_1x1.norm.eval()


CHANGES = [
    step(torch.optim.SGD, foreach=True), step(torch.optim.SGD, foreach=False), step(torch.optim.Adam, foreach=True),
    step_by_hand, swap_through_data, swap_kernels_through_data, replace_memory, replace_parameter, replace_buffer,
    replace_norm, write_one_number_of_a_norm, change_eps, load_all, load_a_branch, assign_a_branch, train_a_step,
    statistics_of_one_norm]


@pytest.mark.parametrize('change', CHANGES)
def test_what_changes_a_block_is_seen(change):
    block = used(new_block())
    before = evaluated(block)
    change(block)
    assert not torch.allclose(truth(block), before)
    torch.testing.assert_close(evaluated(block), truth(block), **EXACT)
    used(block)


def test_fused_optimizers_are_seen():
    try:
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1, fused=True)
    except (RuntimeError, TypeError):
        pytest.skip('this torch fuses no optimizer on a CPU')
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        test_what_changes_a_block_is_seen(step(optimizer, fused=True))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_another_type(dtype):
    block = used(new_block()).to(dtype)
    kernel, bias = block.fuse()
    expected = torch.relu(torch.conv2d(INPUTS.to(dtype), kernel, bias, padding=1, groups=2))
    torch.testing.assert_close(evaluated(block), expected, rtol=0, atol=0)
    torch.testing.assert_close(evaluated(block), expected, rtol=0, atol=0)


def test_one_number_of_a_large_kernel_through_data_is_seen_after_eval():
    """The one change that is not seen before: docs/performance.md says so."""
    block = new_block(channels=64)
    x = torch.randn(1, 64, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        block(x)
        block.branch_3x3.conv.weight.data.view(-1)[1] = 100  # none of the numbers that are looked at
        block.eval()
        with branch_by_branch(block):
            expected = block(x)
        torch.testing.assert_close(block(x), expected, **EXACT)


def all_centres(weight: Tensor) -> None:
    weight.data[:, :, 1, 1] += 1


def most_channels(weight: Tensor) -> None:
    weight.data[:, 1:] = 0


def turned(weight: Tensor) -> None:
    weight.data = weight.data.transpose(2, 3)


@torch.no_grad()
def turned_in_place(weight: Tensor) -> None:
    weight.transpose_(2, 3)


@pytest.mark.parametrize('channels', [8, 16, 48, 64, 192])
@pytest.mark.parametrize('change', [all_centres, most_channels, turned, turned_in_place])
def test_parts_of_a_kernel_and_its_strides(change, channels):
    block = new_block(channels=channels)
    x = torch.randn(1, channels, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        block(x)
        assert block._kept is not None
        change(block.branch_3x3.conv.weight)
        found = block(x)
        with branch_by_branch(block):
            torch.testing.assert_close(found, block(x), **EXACT)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_memory_of_another_size_at_the_same_address(dtype):
    """As where memory is used again: it must not be read as far as before."""
    block = used(new_block()).requires_grad_(False)
    kept, weight = block._kept, block.branch_3x3.conv.weight
    assert kept.is_current()
    weight.data = weight.data.view(-1).view(dtype)[:weight.numel() // 2].view(4, 4, 3, 3)
    assert weight.data_ptr() in kept.pointers and not kept.is_current()


def test_what_a_mode_or_a_transform_of_torch_makes_is_not_kept():
    block = new_block().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        block(INPUTS)
    assert block._kept is None

    tensors = {name: torch.stack([tensor, tensor * 2]) for name, tensor in block.state_dict().items()
               if tensor.is_floating_point()}
    several = torch.vmap(
        lambda tensors, x: torch.func.functional_call(block, tensors, (x,)), in_dims=(0, None))(tensors, INPUTS)
    torch.testing.assert_close(several[0], truth(block), **EXACT)
    used(block)


def test_a_few_numbers_of_a_large_kernel_in_place():
    """Their version tells it, though none of them is looked at."""
    block = new_block(channels=64)
    x = torch.randn(1, 64, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        block(x)
        block.branch_3x3.conv.weight.view(-1)[1] = 100
        with branch_by_branch(block):
            expected = block(x)
        torch.testing.assert_close(block(x), expected, **EXACT)


@pytest.mark.parametrize('copied', [
    copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block)),
    lambda block: torch.load(saved(block), weights_only=False)])
def test_copies_keep_nothing(copied):
    block = used(new_block())
    other = copied(block)
    assert other._kept is None and '_kept' not in block.state_dict()
    swap_through_data(other)
    used(other)
    used(block)


def saved(block: RepVGGBlock) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return file


@pytest.mark.parametrize('change', [RepVGGBlock.train, RepVGGBlock.eval, RepVGGBlock.switch_to_deploy])
def test_the_memory_is_given_back(change):
    block = used(new_block())
    change(block)
    assert block._kept is None


def test_gradients_are_those_of_the_branches():
    block = used(new_block())
    x = INPUTS.clone().requires_grad_()
    grads = []
    for context in (branch_by_branch(block), torch.enable_grad()):
        with context:
            loss = (block(x) * INPUTS.roll(1)).sum()
        grads.append(torch.autograd.grad(loss, [x, *block.parameters()]))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    used(block)


def test_frozen_parameters_and_a_gradient_of_the_input():
    """requires_grad_ decides, call by call, whether a kernel may be kept."""
    block = used(new_block()).requires_grad_(False)
    x = INPUTS.clone().requires_grad_()
    first, = torch.autograd.grad(block(x).square().sum(), x)
    assert block._kept is not None
    with branch_by_branch(block):
        expected, = torch.autograd.grad(block(x).square().sum(), x)
    torch.testing.assert_close(first, expected, **EXACT)

    block.branch_1x1.norm.weight.requires_grad_(True)
    gradient, = torch.autograd.grad(block(x).square().sum(), block.branch_1x1.norm.weight)
    assert gradient.abs().sum() > 0 and block._kept is None


def test_inference_mode_and_then_training():
    block = new_block()
    with torch.inference_mode():
        first = block(INPUTS)
        assert block._kept is not None and not block._kept.fused[0].is_inference()
    block.requires_grad_(False)
    x = INPUTS.clone().requires_grad_()
    block(x).sum().backward()  # an inference tensor could not be kept for the backward pass
    torch.testing.assert_close(first.clone(), block(INPUTS), **EXACT)

    block.requires_grad_(True).train()
    block(x).sum().backward()
    assert block.branch_3x3.conv.weight.grad is not None


def test_parameters_made_in_inference_mode_are_not_followed():
    """They have no version."""
    with torch.inference_mode():
        block = new_block()
        for _ in range(2):
            torch.testing.assert_close(block(INPUTS), truth(block), **EXACT)
    assert block._kept is None


def test_parameters_of_a_functional_call():
    block, other = used(new_block()), new_block(1)
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    with torch.no_grad():
        found = torch.func.functional_call(block, tensors, (INPUTS,))
    torch.testing.assert_close(found, truth(other), **EXACT)
    used(block)


def test_traced_programs_hold_no_kernel_of_before():
    """A trace computes the kernel from the parameters, so that it follows them."""
    block = used(new_block())
    with torch.no_grad():
        traced = torch.jit.trace(block, INPUTS)
    swap_through_data(block)
    torch.testing.assert_close(traced(INPUTS).detach(), truth(block), **EXACT)


def test_channels_last_and_strided_parameters():
    block = used(new_block().to(memory_format=torch.channels_last))
    assert block._kept.fused[0].is_contiguous(memory_format=torch.channels_last)
    block.branch_1x1.norm.weight = nn.Parameter(torch.rand(16, dtype=torch.float64)[::2])
    for _ in range(2):
        torch.testing.assert_close(evaluated(block), truth(block), **EXACT)
    assert block._kept is None  # every second number of a memory is not followed


def test_the_table_of_evaluation():
    output = run_tool('benchmarks/evaluation.py', 'A0', '--sizes', 32, '--batches', 1, '--seconds', 0).stdout
    row, = (line for line in output.splitlines() if line.startswith('| A0, 32x32 | 1 |'))
    assert row.endswith('| 5 |') and 'A0 keeps 28.1 MB beside 31.3 MB of parameters' in output
