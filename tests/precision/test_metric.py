"""The metric by which an engine is judged."""

from __future__ import annotations

import pytest

from repvgg_mm import UserError
from repvgg_mm.precision.metric import headline, validation_config


@pytest.mark.parametrize('metrics, expected', [
    (dict(aAcc=80., mIoU=41.74), ('mIoU', 41.74)),
    ({'coco/bbox_mAP_50': .8, 'coco/bbox_mAP': .5}, ('coco/bbox_mAP', 50)),
    ({'pascal_voc/mAP': .25, 'pascal_voc/AP50': .25}, ('pascal_voc/mAP', 25))])
def test_the_metric_that_counts(metrics, expected):
    assert headline(metrics) == expected


def test_no_metric_that_counts():
    with pytest.raises(UserError, match=r'judged by mIoU or mAP, and the val_evaluator .* gives recall\. Add an IoUM'):
        headline(dict(recall=1.))


def test_the_validation_set_is_tested(cfg):
    cfg.test_dataloader.dataset.data_root = 'absent'
    before = cfg.pretty_text
    found = validation_config(cfg)
    assert found.test_dataloader == cfg.val_dataloader and found.test_evaluator == cfg.val_evaluator
    assert found.log_level == 'ERROR' and cfg.pretty_text == before
