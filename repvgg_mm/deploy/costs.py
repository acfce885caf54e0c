"""What both forms of a converted model cost, and the rows and the table that say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..convert.blocks import blocks_of
from ..convert.measure import ROUNDS, Latency, RoundProgress, count_macs, count_parameters, form_latency
from ..convert.raw_outputs import is_two_stage
from .conversion import Conversion

NAME_WIDTH = 34
MOST_ERRORS = 6  # lines


@dataclass(frozen=True)
class Costs:
    """What the two forms of a conversion cost, training form first.

    `latency` is that of `form_latency` in so many `rounds`; empty if it was left out.
    """

    blocks: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    latency: Mapping[str, Latency]
    rounds: int = 0


class CostRow(NamedTuple):
    """One row of a table of both forms; `training` and `deploy` are None where the row has no such figure."""

    name: str
    training: float | None
    deploy: float | None
    digits: int

    @property
    def texts(self) -> tuple[str, str]:
        """Both figures as every table shows them."""
        return _text(self.training, self.digits), _text(self.deploy, self.digits)


def measure_costs(
    conversion: Conversion,
    *,
    latency_seconds: float = math.inf,
    progress: Callable[[str], None] = lambda step: None,
) -> Costs:
    """Parameters, multiply-accumulates and latency of both forms.

    Args:
        latency_seconds: as the limit of `form_latency`; 0 leaves latency out.
    """
    trained, deploy, inputs = conversion.trained, conversion.deploy, conversion.inputs
    latency = {}
    after_round = RoundProgress(ROUNDS, progress)
    if latency_seconds > 0:
        progress('Measuring latency')
        latency = form_latency(trained, deploy, inputs, ROUNDS, limit=latency_seconds, after_round=after_round)

    return Costs(
        blocks=len(blocks_of(deploy)),
        parameters=(count_parameters(trained), count_parameters(deploy)),
        macs=(count_macs(trained, inputs), count_macs(deploy, inputs)),
        latency=latency,
        rounds=after_round.done)


def size_rows(parameters: tuple[int, int], macs: tuple[int, int] | None = None) -> list[CostRow]:
    """Millions of parameters, and GFLOPs (two for a multiply-accumulate)."""
    rows = [CostRow('parameters (million)', parameters[0] / 1e6, parameters[1] / 1e6, 2)]
    if macs is not None:
        rows.append(CostRow('GFLOPs', 2 * macs[0] / 1e9, 2 * macs[1] / 1e9, 2))
    return rows


def latency_rows(latency: Mapping[str, Latency]) -> list[CostRow]:
    """Medians of `form_latency`, in milliseconds; no rows if it was left out."""
    if not latency:
        return []
    branches, training, deploy = (latency[name].median_ms for name in ('branches', 'training', 'deploy'))
    return [
        CostRow('latency, branch by branch (ms)', branches, None, 1),
        CostRow('latency, as evaluated (ms)', training, deploy, 1),
    ]


def cost_rows(costs: Costs) -> list[CostRow]:
    """All that a conversion's table and its page say of `costs`."""
    return size_rows(costs.parameters, costs.macs) + latency_rows(costs.latency)


def table_of_forms(rows: list[tuple[str, str, str]]) -> str:
    """Name, training form and deploy form in aligned columns."""
    lines = [
        f'| {"":<{NAME_WIDTH}} | {"training form":>14} | {"deploy form":>14} |',
        f'|{"-" * (NAME_WIDTH + 2)}|{"-" * 15}:|{"-" * 15}:|',
    ]
    for name, training, deploy in rows:
        lines.append(f'| {name:<{NAME_WIDTH}} | {training:>14} | {deploy:>14} |')
    return '\n'.join(lines)


def costs_table(conversion: Conversion, costs: Costs, *, all_errors: bool = False) -> str:
    """The errors of the outputs, a table of what both forms cost, and what the figures depend on.

    Of many outputs the largest errors are shown, unless `all_errors`.
    """
    height, width = conversion.inputs.shape[2:]
    lines = [
        f'{costs.blocks} RepVGG blocks fused, {len(conversion.errors)} outputs compared on an input of '
        f'{height}x{width}:',
        *_error_lines(conversion.errors, all_errors),
        *conversion.errors.remarks(),
    ]
    rows = [(row.name, *row.texts) for row in cost_rows(costs)]
    return '\n'.join([*lines, '', table_of_forms(rows), conditions(conversion, costs)])


def conditions(conversion: Conversion, costs: Costs) -> str:
    """What the figures of `measure_costs` depend on."""
    height, width = conversion.inputs.shape[2:]
    device = next(conversion.deploy.parameters()).device
    proposals = ', fixed proposals' if is_two_stage(conversion.deploy) else ''
    image = f'1 image of {height}x{width}{proposals}'
    flops = 'FLOPs of the training form: those of its branches.'
    if not costs.latency:
        return f'Latency was not measured. GFLOPs: of {image}. {flops}'
    return (
        f'Latency: median of {costs.rounds} interleaved calls, {image}, {device}, '
        f'{torch.get_num_threads()} threads, float32. {flops}')


def _error_lines(errors: Mapping[str, float], all_errors: bool) -> list[str]:
    shown = list(errors)
    if len(errors) > MOST_ERRORS and not all_errors:
        shown = sorted(errors, key=errors.get, reverse=True)[:MOST_ERRORS - 1]

    lines = [f'  {name}: relative error {errors[name]:.1e}' for name in shown]
    others = len(errors) - len(shown)
    if others:
        lines.append(f'  and {others} more, each smaller')
    return lines


def _text(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'
