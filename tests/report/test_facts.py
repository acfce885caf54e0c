"""Figures and facts as every page writes them."""

from __future__ import annotations

import re

import pytest
import torch

from repvgg_mm.report.facts import change_text, error_verdict, facts_of, size_text


@pytest.mark.parametrize('before, after, text', [
    (8, 6, '\u221225.0 %'), (8, 9, '+12.5 %'), (3, 3, '+0.0 %'), (1000, 999, '\u22120.1 %')])
def test_a_change_is_told_in_percent(before, after, text):
    assert change_text(before, after) == text


def test_the_worst_error_stands_beside_what_is_allowed():
    errors = {'logits': 2.5e-7, 'boxes': 1.26e-6, 'scores': 0.0}
    verdict = error_verdict(errors, 1e-5)
    assert (verdict.value, verdict.words) == ('1.3e-06', 'on boxes; at most 1e-05 allowed')
    assert error_verdict(errors, 0.02, 'in int8').words == 'on boxes; in int8, at most 0.02 allowed'


def test_facts_of_a_checkpoint():
    facts = facts_of('net.py', 'net.pth', 'ab12', 'A0', dict(torch='2.1.0', onnx='1.16'), torch.Size([1, 3, 64, 96]))
    assert list(facts) == ['config', 'checkpoint', 'sha256', 'architecture', 'input', 'date', 'machine', 'versions']
    assert (facts['config'], facts['checkpoint'], facts['sha256'], facts['architecture']) == (
        'net.py', 'net.pth', 'ab12', 'A0')
    assert facts['input'] == size_text([1, 3, 64, 96]) == '1x3x64x96'
    assert facts['machine'].endswith(f', {torch.get_num_threads()} threads')
    assert re.fullmatch(r'torch 2\.1\.0, onnx 1\.16, python 3\.\d+\.\d+\S*', facts['versions'])
    assert re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}', facts['date'])
