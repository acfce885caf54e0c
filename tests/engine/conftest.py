"""A segmentor and a detector on generated images, each with a checkpoint and engines: made once for all these tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectors import detector, predict
from engines import Trained, trained_segmentor, write_config

from repvgg_mm.demo.shapes import make_shapes

DETECTED = ('disk', 'ring', 'square')


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=1, num_val=3, size=64)


@pytest.fixture(scope='session')
def segmentor(shapes, tmp_path_factory) -> Trained:
    return trained_segmentor(tmp_path_factory.mktemp('segmentor'), shapes)


@pytest.fixture(scope='session')
def retinanet(shapes, tmp_path_factory) -> Trained:
    """Its annotations are what it finds in the images at their own size, so that its mAP is neither 0 nor 1."""
    from mmcv import imread
    folder = tmp_path_factory.mktemp('retinanet')
    model, cfg = detector('RetinaNet')
    annotations = dict(images=[], annotations=[], categories=[
        dict(id=i, name=name) for i, name in enumerate(DETECTED)])

    for number, file in enumerate(sorted((shapes / 'images/val').glob('*.jpg'))):
        annotations['images'].append(dict(id=number, file_name=file.name, height=64, width=64))
        found = predict(model, torch.from_numpy(imread(file)).permute(2, 0, 1))[:20]
        for (x1, y1, x2, y2), label in zip(found.bboxes.tolist(), found.labels.tolist()):
            annotations['annotations'].append(dict(
                id=len(annotations['annotations']) + 1, image_id=number, category_id=label, iscrowd=0,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1)))
    (folder / 'found.json').write_text(json.dumps(annotations))

    path = write_config(
        folder / 'retinanet.py', cfg.model.to_dict(), shapes, 'configs/retinanet_repvgg_a0_shapes.py',
        dict(ann_file=str(folder / 'found.json'), metainfo=dict(classes=DETECTED)),
        dict(ann_file=str(folder / 'found.json')))
    return Trained(path, model, DETECTED)
