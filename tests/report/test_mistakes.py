"""Mistakes are counted as written out by hand, and the worst images come first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from reports import boxes, config_of, write_checkpoint_of, write_config

from repvgg_mm import UserError
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.openmmlab.config import copy_of, import_toolbox
from repvgg_mm.precision.metric import validation_config
from repvgg_mm.report.mistakes import _boxes, count_pixels, find_mistakes, match_boxes


def test_pixels_by_what_they_are_and_what_they_were_taken_for():
    truth = np.array([[0, 0, 1, 2], [2, 2, 255, 255]])
    predicted = np.array([[0, 1, 1, 0], [2, 2, 0, 2]])
    assert count_pixels(truth, predicted, 4).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_boxes_have_one_partner_each_the_nearest_first():
    objects = torch.tensor([[0., 0, 10, 10], [100, 100, 110, 110]])
    found = torch.tensor([[0., 0, 10, 8], [0, 0, 10, 10], [104, 100, 114, 110], [100, 100, 110, 105]])
    labels, same = torch.zeros(2).long(), torch.zeros(4).long()
    # the second box is the first object's; the third overlaps by 60 of 140, the fourth by half exactly
    assert match_boxes(objects, labels, found, same) == [(0, 1), (1, 3)]
    assert match_boxes(objects, labels, found[:0], same[:0]) == match_boxes(objects[:0], labels[:0], found, same) == []
    # a box is that of one object, and the object that is left over has none
    assert match_boxes(objects[[0, 0]], labels, found[:1], same[:1]) == [(0, 0)]
    # of another class the second box has to leave the first object to the first one, and finds no other
    assert match_boxes(objects, labels, found, torch.tensor([0, 1, 0, 1])) == [(0, 0), (1, 3)]


def truth_of(*rows: tuple) -> object:
    """x1, y1, x2, y2, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    sample = boxes()
    sample.gt_instances = InstanceData(bboxes=table[:, :4], labels=table[:, 4].long())
    return sample


def test_objects_missed_mistaken_and_boxes_too_many():
    truth = truth_of((0, 0, 10, 10, 0), (20, 20, 30, 30, 1), (50, 50, 60, 60, 1))
    found = boxes((0, 0, 10, 10, 0, 0.9), (20, 20, 30, 31, 0, 0.8), (70, 70, 80, 80, 1, 0.7), (0, 0, 9, 9, 1, 0.4))
    counts, difference = _boxes(truth, found, 2)
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]  # the last box is below the score that counts
    assert (difference.count, difference.total) == (3, 4)
    assert difference.words == 'of 3 objects 1 are missed and 1 taken for another class, 1 boxes are too many'


@pytest.mark.stack
@pytest.mark.parametrize('task', ['segmentor', 'detector'])
def test_of_a_model(task, shapes, tmp_path):
    path = write_config(tmp_path, task)
    cfg = config_of(path, shapes)
    checkpoint = Checkpoint.read(write_checkpoint_of(path))
    found = find_mistakes(cfg, load_model(cfg, checkpoint), worst=3)
    assert (found.images, found.available, found.boxes) == (5, 5, task == 'detector')

    shares = [one.differing / max(one.total, 1) for one in found.worst]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    assert [picture.title for picture in found.worst[0].pictures] == ['image', 'ground truth', 'prediction', 'mistakes']
    if task == 'detector':
        assert found.classes[-1] == 'nothing' and found.counts.shape == (6, 6)
        assert found.counts[:-1].sum() > 0
    else:
        metric = evaluate(validation_config(cfg), checkpoint)['mIoU']  # mmseg's own
        assert 100 * np.nanmean(found.iou) == pytest.approx(metric, abs=0.006)
        assert found.counts.sum() == 5 * 64 * 64


def test_shares_of_a_class():
    from repvgg_mm.report.mistakes import Mistakes
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    found = Mistakes(counts, ['a', 'b', 'c'], False, 1, 1, [], [])
    np.testing.assert_allclose(found.found, [6 / 8, 3 / 4, np.nan])
    np.testing.assert_allclose(found.right, [6 / 7, 3 / 5, np.nan])
    np.testing.assert_allclose(found.iou, [6 / 9, 3 / 6, np.nan])


def test_time_ends_it_after_the_first_image(converted):
    conversion, _, cfg = converted
    import_toolbox(cfg)
    found = find_mistakes(cfg, conversion.deploy, seconds=0)
    assert (found.images, found.available, len(found.worst)) == (1, 5, 1)


def test_without_annotations_there_is_nothing_to_count(converted):
    conversion, _, cfg = converted
    import_toolbox(cfg)
    cfg = copy_of(cfg)
    pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset.pipeline = [step for step in pipeline if step['type'] != 'LoadAnnotations']
    with pytest.raises(UserError, match=r'the validation pipeline loads none\. Add LoadAnnotations'):
        find_mistakes(cfg, conversion.deploy)


def test_labels_that_were_resized_with_the_image(converted):
    conversion, _, cfg = converted
    import_toolbox(cfg)
    cfg = copy_of(cfg)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='Resize', scale=(32, 32)),
                dict(type='PackSegInputs')]
    cfg.val_dataloader.dataset.pipeline = pipeline
    with pytest.raises(UserError, match=r'resizes annotations: .*LoadAnnotations, Resize.*after Resize'):
        find_mistakes(cfg, conversion.deploy)


def test_classes_that_the_data_set_does_not_name(converted):
    conversion, _, cfg = converted
    import_toolbox(cfg)
    with pytest.raises(UserError, match='have the 2 classes of the data set, and one has class 2'):
        _boxes(truth_of((0, 0, 10, 10, 2)), boxes(), 2)
    cfg = copy_of(cfg)
    cfg.val_dataloader.dataset.metainfo = dict(classes=('background',), palette=[[0, 0, 0]])
    with pytest.raises(UserError, match=r'the 1 classes of the data set, .*Name every class in metainfo'):
        find_mistakes(cfg, conversion.deploy)


def test_boxes_of_the_truth_are_all_found(shapes, tmp_path):
    """At their original size, though the network sees the images at twice that."""
    path = write_config(tmp_path, 'detector')
    cfg = config_of(path, shapes)
    import_toolbox(cfg)
    for step in cfg.val_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (128, 128)
    model = Oracle()
    found = find_mistakes(cfg, model)
    objects = found.counts[:-1].sum()
    assert objects > 5 and found.counts.diagonal().sum() == found.counts.sum() == objects
    assert model.sizes == {(128, 128)}


class Oracle(torch.nn.Module):
    """Predicts what is annotated."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = set()

    def test_step(self, batch: dict) -> list:
        sample, = batch['data_samples']
        self.sizes.add(tuple(batch['inputs'][0].shape[1:]))
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes, labels=truth.labels,
            scores=torch.ones(len(truth)))
        return [sample]
