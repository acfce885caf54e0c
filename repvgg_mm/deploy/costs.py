"""What both forms of a converted model cost, and the table that says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..block import RepVGGBlock
from ..convert.foreign import FusedBlock
from ..convert.measure import Latency, count_macs, count_parameters, form_latency
from ..convert.raw_outputs import is_two_stage
from .conversion import Conversion


@dataclass
class Costs:
    """What the two forms of a conversion cost, training form first; `latency` is that of `form_latency`."""

    blocks: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    latency: dict[str, Latency]


def measure(conversion: Conversion) -> Costs:
    """Parameters, FLOPs and latency of both forms."""
    models, inputs = (conversion.trained, conversion.deploy), conversion.inputs
    return Costs(
        sum(isinstance(module, (RepVGGBlock, FusedBlock)) for module in conversion.deploy.modules()),
        tuple(count_parameters(model) for model in models), tuple(count_macs(model, inputs) for model in models),
        form_latency(*models, inputs))


def report(conversion: Conversion, costs: Costs) -> str:
    """A table of both forms: blocks, parameters, FLOPs, latency; and the worst error of each output."""
    height, width = conversion.inputs.shape[2:]
    latency = costs.latency
    lines = [
        f'{costs.blocks} RepVGG blocks fused, {len(conversion.errors)} outputs compared on an input of '
        f'{height}x{width}:',
        *(f'  {name}: relative error {error:.1e}' for name, error in conversion.errors.items()),
        '',
        f'| {"":<30} | {"training form":>14} | {"deploy form":>14} |',
        f'|{"-" * 32}|{"-" * 15}:|{"-" * 15}:|']
    rows = [
        ('parameters (million)', *(f'{count / 1e6:.2f}' for count in costs.parameters)),
        ('GFLOPs', *(f'{2 * macs / 1e9:.2f}' for macs in costs.macs)),
        ('latency, branch by branch (ms)', f'{latency["branches"].median_ms:.1f}', ''),
        ('latency, as evaluated (ms)', f'{latency["training"].median_ms:.1f}', f'{latency["deploy"].median_ms:.1f}')]
    lines += [f'| {name:<30} | {before:>14} | {after:>14} |' for name, before, after in rows]
    return '\n'.join([*lines, conditions(conversion)])


def conditions(conversion: Conversion) -> str:
    """What the figures of `measure` depend on."""
    height, width = conversion.inputs.shape[2:]
    device = next(conversion.deploy.parameters()).device
    proposals = ', fixed proposals' if is_two_stage(conversion.deploy) else ''
    return (f'Latency: median of interleaved calls, 1 image of {height}x{width}{proposals}, {device}, '
            f'{torch.get_num_threads()} threads, float32. FLOPs of the training form: those of its branches.')
