"""Predictions of two models beside the truth, and how many pixels or boxes differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reports import boxes, masks

from repvgg_mm import UserError, block
from repvgg_mm.openmmlab.config import copy_of
from repvgg_mm.openmmlab.model import build_model
from repvgg_mm.report.side_by_side import _compare_boxes, _compare_masks, side_by_side


def test_differing_pixels_are_counted():
    labels = np.arange(48).reshape(6, 8) % 5
    other = labels.copy()
    other[2, 3:6] += 1
    assert _compare_masks(*masks(labels, other))[:3] == (3, 48, '3 of 48 pixels differ')


@pytest.mark.parametrize('second, differing', [
    ([(10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.8)], 0),
    ([(30, 30, 50, 40.5, 1, 0.8), (10, 10, 20, 20, 0, 0.9)], 0),   # another order, half a pixel
    ([(10, 10, 20, 20, 0, 0.9), (30, 30, 50, 42, 1, 0.8)], 2),     # two pixels: one alone in each
    ([(10, 10, 20, 20, 1, 0.9), (30, 30, 50, 40, 1, 0.8)], 2),     # another class
    ([(10, 10, 20, 20, 0, 0.9)], 1), ([], 2),
    ([(10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.8), (0, 0, 9, 9, 0, 0.4)], 0)])  # the last is not drawn
def test_boxes_without_a_counterpart_are_counted(second, differing):
    first = boxes((10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.8))
    drawn = sum(score >= 0.5 for *_, score in second)
    for pair in ((first, boxes(*second)), (boxes(*second), first)):
        found = _compare_boxes(*pair)
        assert found[:2] == (differing, 2 + drawn) and f'{differing} of {2 + drawn} boxes' in found[2]


def test_how_far_counterparts_are_apart_is_told_in_hundredths():
    first = boxes((10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40, 1, 0.75))
    near = boxes((10, 10, 20, 20, 0, 0.9), (30, 30, 50, 40.25, 1, 0.78125))
    assert _compare_boxes(first, near).words == (
        '0 of 4 boxes without a counterpart in the other prediction, edges within 0.25 pixels, scores within 3.12 '
        'percent points')
    assert _compare_boxes(first, first).words.endswith('edges within 0.01 pixels, scores within 0.01 percent points')


def test_images_of_two_models_that_differ(converted, shapes):
    conversion, _, cfg = converted
    other = build_model(cfg).eval()
    found = side_by_side(cfg, dict(one=conversion.trained, other=other), 2)
    assert [comparison.total for comparison in found.comparisons] == [64 * 64] * 2
    assert all(comparison.differing > 0 for comparison in found.comparisons)
    assert [tuple(batch.shape) for batch in found.inputs] == [(1, 3, 64, 64)] * 2
    assert [picture.title for picture in found.comparisons[0].pictures] == [
        'image', 'ground truth', 'one', 'other', 'where they differ']
    assert found.legend[0] == ('background', 'rgb(60, 60, 60)')


def test_a_training_form_predicts_branch_by_branch(converted, monkeypatch):
    conversion, _, cfg = converted
    ways = []
    original = block.RepVGGBlock.forward

    def watched(self, x):
        ways.append(self.fuse_on_the_fly)
        return original(self, x)

    monkeypatch.setattr(block.RepVGGBlock, 'forward', watched)
    side_by_side(cfg, dict(one=conversion.trained, other=conversion.trained), 1)
    assert ways and not any(ways)
    assert conversion.trained.backbone.stem.fuse_on_the_fly  # as before


def test_models_of_another_kind_are_not_drawn_but_their_inputs_are_kept(converted):
    class Other(torch.nn.Module):
        data_preprocessor = converted[0].trained.data_preprocessor

    found = side_by_side(converted[2], dict(one=Other(), other=Other()), 2)
    assert (found.comparisons, found.legend) == ([], []) and len(found.inputs) == 2


def test_a_damaged_image_is_named(converted, shapes, tmp_path):
    cfg = copy_of(converted[2])
    for folder in ('images', 'labels'):
        (tmp_path / folder / 'val').mkdir(parents=True)
    for path in (shapes / 'labels' / 'val').iterdir():
        (tmp_path / 'labels' / 'val' / path.name).write_bytes(path.read_bytes())
        (tmp_path / 'images' / 'val' / f'{path.stem}.jpg').write_bytes(b'no image')
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    with pytest.raises(UserError, match=r'Image 0 of the validation set cannot be read \('):
        side_by_side(cfg, dict(one=converted[0].trained), 1)
