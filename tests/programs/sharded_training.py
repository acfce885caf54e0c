"""For test_sharded.py, started by torchrun: a few steps with fully_shard, beside the same ones with DDP.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/programs/sharded_training.py

Asserts that losses, parameters, statistics, evaluation and the deploy form agree, for each way of RUNS; the first
process prints it, and what is said of a conversion.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from repvgg_mm import RepVGG, UserError, whole_model_convert
from repvgg_mm.block import named_blocks

ARCH = dict(depths=(1, 2, 1, 1), width_factors=(0.125,) * 4, groups=1)
EXACT = dict(rtol=1e-10, atol=1e-10)

# The unit that is sharded by itself, and options of the backbone.
RUNS = [('block', {}), ('block', dict(with_cp=True)), ('block', dict(norm_eval=True)), ('branch', {}), ('model', {})]


def main() -> None:
    dist.init_process_group('gloo')
    for unit, options in RUNS:
        said = compare(unit, options)
        if dist.get_rank() == 0:
            print(f'{unit} {options}: equal to DDP. {said}')
    dist.destroy_process_group()


def compare(unit: str, options: dict[str, bool]) -> str:
    """Train both ways; returns what is said to one who converts the sharded model."""
    torch.manual_seed(0)
    whole = RepVGG(ARCH, **options).double().train()
    reference = DistributedDataParallel(copy.deepcopy(whole), broadcast_buffers=False)
    sharded = shard(copy.deepcopy(whole), unit)

    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (sharded, reference)]
    for number in range(3):
        torch.manual_seed(2 * number + dist.get_rank())
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        losses = [step(model, optimizer, x) for model, optimizer in zip((sharded, reference), optimizers)]
        torch.testing.assert_close(*losses, **EXACT)

    # Twice after one eval(), so that a kernel kept of parameters that are gone would be noticed.
    expected = evaluate(reference.module.eval(), x)
    sharded.eval()
    for _ in range(2):
        torch.testing.assert_close(evaluate(sharded, x), expected, **EXACT)
    if unit == 'block':
        assert all(block._kept is None for _, block in named_blocks(sharded))

    gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        for name, tensor in reference.module.state_dict().items():
            torch.testing.assert_close(gathered[name], tensor, **EXACT)
        whole.load_state_dict(gathered)
        torch.testing.assert_close(evaluate(whole_model_convert(whole), x), expected, **EXACT)
    return refusal(sharded)


def refusal(sharded: nn.Module) -> str:
    try:
        whole_model_convert(sharded)
    except UserError as error:
        return str(error)
    return 'It was converted.'


def shard(model: RepVGG, unit: str) -> RepVGG:
    """Each process keeps its share of every unit's parameters, and has them whole while the unit runs."""
    mesh = init_device_mesh('cpu', (dist.get_world_size(),))
    blocks = [block for _, block in named_blocks(model)]
    units = {
        'block': blocks,
        'branch': [branch for block in blocks for branch in (block.branch_3x3, block.branch_1x1)],
        'model': []}
    for module in units[unit]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = sum(output.square().mean() for output in model(x))
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return model(x)


if __name__ == '__main__':
    main()
