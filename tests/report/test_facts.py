"""Figures and facts as every page writes them."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.config import Config
from torch import nn

from repvgg_mm.report.facts import change_text, data_facts, error_verdict, facts_of, model_title, size_text


@pytest.mark.parametrize('before, after, text', [
    (8, 6, '\u221225.0 %'), (8, 9, '+12.5 %'), (3, 3, '+0.0 %'), (1000, 999, '\u22120.1 %')])
def test_a_change_is_told_in_percent(before, after, text):
    assert change_text(before, after) == text


def test_the_worst_error_stands_beside_what_is_allowed():
    errors = {'logits': 2.5e-7, 'boxes': 1.26e-6, 'scores': 0.0}
    verdict = error_verdict(errors, 1e-5)
    assert (verdict.value, verdict.words) == ('1.3e-06', 'on boxes, of a random input; at most 1e-05 allowed')
    assert error_verdict(errors, 0.02, 'in int8').words == 'on boxes, of a random input; in int8, at most 0.02 allowed'
    assert error_verdict({'labels': 0.0}, 1e-4).value == 'equal'


def test_facts_of_a_checkpoint():
    facts = facts_of('net.py', 'net.pth', 'ab12', 'A0', dict(torch='2.1.0', onnx='1.16'), torch.Size([1, 3, 64, 96]),
                     Config(dict(val_dataloader=dict(dataset=dict(type='CocoDataset', data_root='data/x')))))
    assert list(facts) == [
        'config', 'checkpoint', 'sha256', 'architecture', 'data set', 'input', 'date', 'machine', 'versions']
    assert (facts['config'], facts['checkpoint'], facts['sha256'], facts['architecture']) == (
        'net.py', 'net.pth', 'ab12', 'A0')
    assert facts['input'] == size_text([1, 3, 64, 96]) == '1x3x64x96'
    assert facts['machine'].endswith(f', {torch.get_num_threads()} threads')
    assert re.fullmatch(r'torch 2\.1\.0, onnx 1\.16, python 3\.\d+\.\d+\S*', facts['versions'])
    assert re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}', facts['date'])


@pytest.mark.parametrize('evaluator, text', [
    (dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice']), 'IoUMetric (mIoU, mDice)'),
    ([dict(type='CocoMetric', metric='bbox'), dict(type='Other')], 'CocoMetric (bbox), Other')])
def test_data_and_metric_of_a_config(evaluator, text):
    loader = dict(dataset=dict(type='CocoDataset', data_root='data/x'))
    cfg = Config(dict(val_dataloader=loader, val_evaluator=evaluator))
    assert data_facts(cfg) == {'data set': 'CocoDataset, data/x', 'metric': text}
    assert data_facts(Config(dict(val_dataloader=None))) == {}


def test_a_model_is_called_by_its_class_and_backbone():
    assert model_title(nn.Linear(1, 1), 'RepVGG-A0') == 'Linear on RepVGG-A0'
    assert model_title(nn.Linear(1, 1), dict(num_blocks=[1])) == 'Linear'
