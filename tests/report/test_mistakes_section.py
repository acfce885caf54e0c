"""What a page says of mistakes: every class in a table, the most mistaken in a chart, the worst images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reports import read

from repvgg_mm.openmmlab.config import copy_of
from repvgg_mm.report.mistakes import NOTHING, Mistakes
from repvgg_mm.report.mistakes_section import MOST, look_for_mistakes, mistakes_section, mistakes_verdict
from repvgg_mm.report.page import Page, render

SEGMENTED = Mistakes(
    np.array([[60, 20, 0], [10, 10, 0], [0, 0, 0]]), ['road', 'car', 'sign'], False, 7, 9, [], [('road', 'red')])
DETECTED = Mistakes(np.array([[6, 0, 2], [1, 3, 0], [1, 0, 0]]), ['disk', 'cross', NOTHING], True, 9, 9, [], [])


def table_of(found: Mistakes) -> list:
    return mistakes_section(found, 'by a test').parts[0].rows


def test_table_of_classes():
    assert table_of(SEGMENTED) == [
        ('road', '80.0', '75.0', '85.7', '66.7', 'car (25 %)'),
        ('car', '20.0', '50.0', '33.3', '25.0', 'road (50 %)'),
        ('sign', '0.0', '', '', '', '')]
    assert table_of(DETECTED) == [
        ('disk', '8', '75.0', '75.0', 'nothing (25 %)'), ('cross', '4', '75.0', '100.0', 'disk (25 %)')]


def test_verdict_and_what_it_was_found_on():
    verdict = mistakes_verdict(SEGMENTED, 'by a test')
    assert (verdict.value, verdict.name) == ('45.8 %', 'mean IoU of the classes')
    assert verdict.words == 'on 7 of the 9 images of the validation set; by a test'
    verdict = mistakes_verdict(DETECTED, 'by a test')
    assert (verdict.value, verdict.name) == ('9 of 12', 'objects are found')
    assert verdict.words.startswith('on all 9 images')


@pytest.mark.parametrize('found', [SEGMENTED, DETECTED], ids=['masks', 'boxes'])
def test_the_page_is_whole(found):
    page = read(render(Page('a title', 'a kind', {}, [], [mistakes_section(found, 'by a test')])))
    assert page.tags['svg'] == 1 and 'taken for' in page.text
    assert 'sign' not in page.text.split('Found is the share')[1]  # a class that is not there is not in the chart


def test_of_many_classes_the_chart_has_those_with_most_mistakes():
    counts = 100 * np.eye(50, dtype=np.int64)
    counts[3, 40] = 7
    counts[45, 45] = 10_000  # large, and right
    names = [f'class {i}' for i in range(50)]
    found = replace(SEGMENTED, counts=counts, classes=names)
    _, chart, _ = mistakes_section(found, 'by a test').parts
    assert f'The {MOST} classes with most mistakes' in chart.caption
    assert '>class 3<' in chart.svg and '>class 40<' in chart.svg
    assert '>class 45<' not in chart.svg and '>class 49<' not in chart.svg
    assert len(table_of(found)) == 50


def test_without_data_the_reason_is_told(converted):
    conversion, _, cfg = converted
    cfg = copy_of(cfg)
    cfg.val_dataloader = None
    section, verdicts = look_for_mistakes(cfg, conversion.deploy, 'by a test', print)
    assert section.text.startswith('Not counted. Images come from val_dataloader') and verdicts == []
