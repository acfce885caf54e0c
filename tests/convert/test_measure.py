"""What a model costs: counts worked out by hand, medians of calls whose length is known."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from helpers import block
from torch import nn

from repvgg_mm.convert import measure
from repvgg_mm.convert.measure import (
    LiveBytes,
    RoundProgress,
    count_macs,
    count_parameters,
    form_latency,
    interleaved_latency,
)


def test_parameters_and_products_of_a_block_are_those_of_its_branches():
    model = block(4, 8, stride=2).float()
    kernels = 8 * 4 * 9 + 8 * 4
    assert count_parameters(model) == kernels + 2 * 2 * 8  # and two norms
    x = torch.randn(1, 4, 6, 10)
    assert count_macs(model, x) == kernels * 3 * 5
    model.switch_to_deploy()
    assert count_macs(model, x) == 8 * 4 * 9 * 3 * 5
    assert count_parameters(model) == 8 * 4 * 9 + 8


def test_calls_are_interleaved_and_the_first_round_is_not_counted():
    order = []

    def call(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            time.sleep(seconds * (5 if len(order) <= 2 else 1))
        return run

    found = interleaved_latency({'short': call('short', 0.002), 'long': call('long', 0.02)}, rounds=5)
    assert order == ['short', 'long'] * 6
    assert 2 <= found['short'].median_ms < 20 <= found['long'].median_ms < 100  # warm-up: 100
    assert found['long'].lower_ms <= found['long'].median_ms <= found['long'].upper_ms


def test_rounds_end_at_the_limit_and_calls_are_apart_by_the_pause():
    times, rounds = [], []
    found = interleaved_latency(
        {'a': lambda: times.append(time.perf_counter())}, 50, pause=0.02, limit=0.0, after_round=rounds.append)
    assert rounds == [0, 1, 2] and len(times) == 3  # one to warm up, two that quartiles need
    assert min(after - before for before, after in pairwise(times)) >= 0.02 and found['a'].median_ms < 20
    interleaved_latency({'a': lambda: None}, 4, after_round=rounds.append)
    assert rounds[3:] == [0, 1, 2, 3, 4]


def test_progress_is_said_from_time_to_time(monkeypatch):
    now, said = 0.0, []
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: now)
    after_round = RoundProgress(9, said.append)
    for done in range(6):
        now += 2.0
        after_round(done)
    assert said == ['Measured latency in 2 of 9 rounds', 'Measured latency in 5 of 9 rounds']
    assert after_round.done == 5


def test_every_form_is_called_as_it_is_named(monkeypatch):
    trained, deploy = block(4, 4).float(), block(4, 4).float()
    deploy.switch_to_deploy()
    seen = []
    monkeypatch.setattr(
        type(trained), '_fused', lambda self: seen.append('fused') or (self.branch_3x3.conv.weight, None))
    found = form_latency(trained, deploy, torch.randn(1, 4, 8, 8), rounds=2)
    assert list(found) == ['branches', 'training', 'deploy']
    assert seen == ['fused'] * 3  # the training form alone, once a round and to warm up
    form_latency(trained, deploy, torch.randn(1, 4, 8, 8), rounds=9, limit=0.0)
    assert seen == ['fused'] * 6


def test_live_bytes_counts_what_is_alive_at_once():
    model = nn.Linear(10, 10, bias=False)
    with LiveBytes(model) as live:
        a = torch.zeros(1000)
        b = torch.zeros(500)
        del a
        c = torch.zeros(100)
    assert live.start == 400 and live.peak == 400 + 6000
    assert live.sum() == 400 + 4 * (len(b) + len(c))
