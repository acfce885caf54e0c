"""The raw outputs of two-stage detectors are their own network's, on proposals that do not depend on it."""

from __future__ import annotations

import pytest
import torch
from helpers import image, pspnet, two_stage
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from repvgg_mm.convert.raw_outputs import WAYS, fixed_proposals, is_two_stage, raw_outputs, way_of


def test_other_models_are_called_as_they_are():
    model = pspnet().double()
    assert not is_two_stage(model)
    torch.testing.assert_close(raw_outputs(model, image()), model(image()), rtol=0, atol=0)


def test_both_stages_are_those_of_the_toolbox():
    """On its own proposals a detector's prediction follows from the raw outputs of its second stage."""
    init_default_scope('mmdet')
    from mmdet.structures import DetDataSample
    model = two_stage('fasterrcnn')
    x = image(1, 3, 64, 96, dtype=torch.float32)
    boxes = fixed_proposals(12, 64, 96)
    sample = DetDataSample(metainfo=dict(img_shape=(64, 96), scale_factor=(1., 1.)),
                           proposals=InstanceData(bboxes=boxes, scores=torch.ones(12)))
    model.roi_head.test_cfg.update(score_thr=0., nms=dict(type='nms', iou_threshold=1.))
    with torch.no_grad():
        outputs = raw_outputs(model, x)
        prediction, = model.predict(x, [sample])
    scores = outputs['roi_head'][0].softmax(1)[:, :-1]                    # 12 boxes, 5 classes
    expected = scores.flatten().sort(descending=True).values
    found = prediction.pred_instances.scores
    torch.testing.assert_close(found, expected[:len(found)], rtol=0, atol=0)
    assert len(found) == 60
    torch.testing.assert_close(outputs['rpn_head'], model.rpn_head(model.extract_feat(x)), rtol=0, atol=0)


def test_as_many_proposals_as_the_detector_takes():
    model = two_stage('maskrcnn').double()
    cls_score, bbox_pred, masks = raw_outputs(model, image())['roi_head']
    assert cls_score.shape == (2 * 12, 6) and bbox_pred.shape == (2 * 12, 20) and masks.shape == (2 * 12, 5, 28, 28)


@pytest.mark.parametrize('height, width', [(64, 64), (512, 1024)])
def test_proposals_are_boxes_in_the_image_of_every_size(height, width):
    x1, y1, x2, y2 = fixed_proposals(1000, height, width).T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width * 1.00001).all() and (y2 <= height * 1.00001).all()
    for start, end, side in ((x1, x2, width), (y1, y2, height)):
        size = (end - start) / side
        assert size.min() >= 0.031 and size.min() < 0.04 and size.max() > 0.9
        assert start.min() < 0.02 * side and end.max() > 0.98 * side
    torch.testing.assert_close(fixed_proposals(1000, height, width)[:, 0], x1, rtol=0, atol=0)


class Model(nn.Module):
    """Raises what it is told in each way."""

    def __init__(self, **raised: Exception) -> None:
        super().__init__()
        self.raised = raised

    def forward(self, images, samples=None, mode='tensor'):
        return self.answer('plain' if samples is None else mode)

    def extract_feat(self, images):
        return self.answer('features')

    def backbone(self, images):
        return self.answer('backbone')

    def answer(self, way):
        if way in self.raised:
            raise self.raised[way]
        return [torch.zeros(1)]


NO_OPERATION = RuntimeError('carafe_forward_impl: implementation for device cpu not found.')


@pytest.mark.parametrize('number, raised', [
    (0, {}), (1, dict(plain=TypeError())), (1, dict(plain=NO_OPERATION)),
    (2, dict(plain=AssertionError(), tensor=KeyError())), (2, dict(plain=ImportError(), tensor=RuntimeError('boxes'))),
    (3, dict(plain=TypeError(), tensor=TypeError(), predict=RuntimeError('boxes'))),
    (4, dict(plain=NO_OPERATION, tensor=NO_OPERATION, predict=NO_OPERATION, features=NO_OPERATION))])
def test_the_first_way_in_which_a_model_runs(number, raised):
    assert way_of(Model(**raised), image()) == list(WAYS)[number]


@pytest.mark.parametrize('raised', [
    dict(plain=RuntimeError('too small')),
    dict(plain=TypeError(), tensor=TypeError(), predict=TypeError(), features=RuntimeError('too small')),
    dict(plain=TypeError(), tensor=TypeError(), predict=TypeError(), features=AssertionError('too small'))])
def test_what_no_other_way_would_help_is_raised(raised):
    with pytest.raises((RuntimeError, AssertionError), match='too small'):
        way_of(Model(**raised), image())
