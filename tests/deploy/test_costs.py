"""What both forms cost: figures counted another way, and one set of rows for every table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import TINY, backbone
from mmengine.config import Config
from torch import nn

from repvgg_mm import whole_model_convert
from repvgg_mm.convert.compare import OutputErrors
from repvgg_mm.convert.measure import Latency
from repvgg_mm.deploy.conversion import Conversion
from repvgg_mm.deploy.costs import (
    Costs,
    cost_rows,
    costs_table,
    latency_rows,
    measure_costs,
    size_rows,
    table_of_forms,
)

pytestmark = pytest.mark.stack
LATENCY = dict(branches=Latency(3.04, 3, 4), training=Latency(2.06, 2, 3), deploy=Latency(1.0, 1, 2))


@pytest.fixture(scope='module')
def conversion() -> Conversion:
    trained = backbone(TINY)
    errors = OutputErrors({'output[0]': 1.5e-7, 'output[3]': 2.5e-6})
    return Conversion(trained, whole_model_convert(trained), errors, torch.randn(1, 3, 64, 96), Config(), {})


def macs_of_convolutions(model: nn.Module, inputs: torch.Tensor) -> int:
    """Output values times the weights of one filter."""
    total = 0

    def count(conv: nn.Conv2d, _: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * conv.weight[0].numel()

    for conv in model.modules():
        if isinstance(conv, nn.Conv2d):
            conv.register_forward_hook(count)
    with torch.no_grad():
        model(inputs)
    return total


def test_the_figures_are_those_counted_by_hand(conversion):
    costs = measure_costs(conversion)
    assert costs.blocks == 1 + sum(TINY['depths'])
    deploy = whole_model_convert(backbone(TINY))
    expected = sum(conv.weight.numel() + conv.bias.numel() for conv in deploy.modules() if isinstance(conv, nn.Conv2d))
    assert costs.parameters[1] == expected
    branches = [module for module in conversion.trained.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert costs.parameters[0] == sum(parameter.numel() for module in branches for parameter in module.parameters())
    macs = macs_of_convolutions(deploy, conversion.inputs)
    assert costs.macs == (macs + macs // 9, macs)  # the 1x1 branch beside the 3x3
    assert set(costs.latency) == {'branches', 'training', 'deploy'}
    assert all(latency.median_ms > 0 for latency in costs.latency.values())
    assert costs.rounds == 15


def test_rows_and_their_texts():
    costs = Costs(blocks=9, parameters=(1_234_567, 1_000_000), macs=(2_500_000_000, 2_000_000_000), latency=LATENCY)
    rows = cost_rows(costs)
    assert [(row.name, *row.texts) for row in rows] == [
        ('parameters (million)', '1.23', '1.00'),
        ('GFLOPs', '5.00', '4.00'),
        ('latency, branch by branch (ms)', '3.0', ''),
        ('latency, as evaluated (ms)', '2.1', '1.0')]
    assert rows == [*size_rows(costs.parameters, costs.macs), *latency_rows(LATENCY)]
    assert [row.name for row in size_rows(costs.parameters)] == ['parameters (million)']


def test_the_table_prints_these_rows_and_what_they_depend_on(conversion):
    costs = measure_costs(conversion)
    table = costs_table(conversion, costs)
    lines = table.splitlines()
    assert lines[:3] == [
        '9 RepVGG blocks fused, 2 outputs compared on an input of 64x96:',
        '  output[0]: relative error 1.5e-07', '  output[3]: relative error 2.5e-06']
    for row in cost_rows(costs):
        cells = [cell.strip() for cell in next(line for line in lines if row.name in line).split('|')]
        assert cells == ['', row.name, *row.texts, '']
    assert lines[-1].startswith(
        f'Latency: median of 15 interleaved calls, 1 image of 64x96, cpu, {torch.get_num_threads()} threads, float32.')


def test_latency_can_be_limited_or_left_out(conversion):
    said = []
    shortest = measure_costs(conversion, latency_seconds=1e-9, progress=said.append)
    assert shortest.rounds == 2 and said == ['Measuring latency']

    without = measure_costs(conversion, latency_seconds=0, progress=said.append)
    assert without.latency == {} and without.rounds == 0 and said == ['Measuring latency']
    assert cost_rows(without) == size_rows(without.parameters, without.macs)
    last = costs_table(conversion, without).splitlines()[-1]
    assert last.startswith('Latency was not measured. GFLOPs: of 1 image of 64x96.')


def test_of_many_outputs_the_largest_errors_are_shown(conversion):
    errors = OutputErrors({f'output[{i}]': (i + 1) * 1e-8 for i in range(12)})
    lines = costs_table(replace(conversion, errors=errors), measure_costs(conversion)).splitlines()
    shown = [f'  output[{i}]: relative error {(i + 1) * 1e-8:.1e}' for i in (11, 10, 9, 8, 7)]
    assert lines[1:7] == [*shown, '  and 7 more, each smaller']
    everything = costs_table(replace(conversion, errors=errors), measure_costs(conversion), all_errors=True)
    assert everything.count('relative error') == 12


def test_what_was_not_compared_is_said(conversion):
    errors = OutputErrors(output=1e-7)
    errors.way, errors.not_run, errors.notes = 'the inputs of the heads', ('mask_head',), ('In float64.',)
    lines = costs_table(replace(conversion, errors=errors), measure_costs(conversion)).splitlines()
    assert lines[2:5] == [
        'In float64.',
        'Compared were the inputs of the heads: without data, or on this device, the model does not run otherwise.',
        'Not compared, because they did not run: mask_head.']


def test_columns_are_aligned():
    lines = table_of_forms([('a', '1', '22.50'), ('latency, branch by branch (ms)', '3.0', '')]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    places = [[place for place, letter in enumerate(line) if letter == '|'] for line in lines]
    assert all(place == places[0] for place in places)
