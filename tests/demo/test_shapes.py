"""The generated dataset: what one call writes, the next one replaces, and nothing else goes; masks and boxes agree."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from pycocotools.mask import decode, frPyObjects

from repvgg_mm import UserError
from repvgg_mm.demo.shapes import CLASSES, COLOURS, _draw, _shape, make_shape_folders, make_shapes

pytestmark = pytest.mark.stack


def test_shapes_of_a_larger_call_go(tmp_path):
    small, again = tmp_path / 'small', tmp_path / 'again'
    make_shapes(again, num_train=4, num_val=3, size=32, seed=1)
    (again / 'images/train/000123.jpg').write_text('not generated')
    for root in (small, again):
        make_shapes(root, num_train=2, num_val=1, size=48)
    (again / 'images/train/000123.jpg').unlink()
    first, second = ({str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*.*')}
                     for root in (small, again))
    assert first == second and len(first) == 8
    make_shape_folders(tmp_path / 'folders', num_train=3, num_val=2, size=32)
    (tmp_path / 'folders/train/disk/disk_mine.jpg').write_text('not generated')
    make_shape_folders(tmp_path / 'folders', num_train=1, num_val=1, size=32)
    assert len([*(tmp_path / 'folders').rglob('*.jpg')]) == 10 + 1


def test_images_of_others_are_not_removed(tmp_path):
    (tmp_path / 'images/train').mkdir(parents=True)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images/train/0007.jpg').write_text('a photograph')
    (tmp_path / 'annotations/train.json').write_text(json.dumps(dict(
        images=[dict(file_name='0007.jpg')], categories=[dict(id=1, name='cell')])))
    make_shapes(tmp_path, num_train=2, num_val=1, size=32)
    assert (tmp_path / 'images/train/0007.jpg').read_text() == 'a photograph'


def test_masks_boxes_and_instances_tell_the_same(tmp_path):
    root = make_shapes(tmp_path, num_train=3, num_val=1, size=64)
    coco = json.loads((root / 'annotations/train.json').read_text())
    assert [image['file_name'] for image in coco['images']] == ['0000.jpg', '0001.jpg', '0002.jpg']
    assert [category['name'] for category in coco['categories']] == list(CLASSES[1:])
    for image in coco['images']:
        mask = cv2.imread(str(root / 'labels/train' / image['file_name'].replace('jpg', 'png')), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (64, 64) == (image['height'], image['width'])
        assert cv2.imread(str(root / 'images/train' / image['file_name'])).shape == (64, 64, 3)
        shapes = [one for one in coco['annotations'] if one['image_id'] == image['id']]
        assert {one['category_id'] for one in shapes} == set(np.unique(mask)) - {0}
        assert sum(one['area'] for one in shapes) == np.count_nonzero(mask)
        outside = mask.copy()
        for one in shapes:
            x, y, width, height = one['bbox']
            inside = mask[y:y + height, x:x + width] == one['category_id']
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()  # no smaller box would do
            outside[y:y + height, x:x + width] = 0
        assert not outside.any()
        segmented = np.zeros_like(mask)
        for one in shapes:
            inside = decode(frPyObjects(one['segmentation'], 64, 64))
            assert inside.sum() == one['area'] and not segmented[inside > 0].any()
            segmented[inside > 0] = one['category_id']
        np.testing.assert_array_equal(segmented, mask)
    assert [one['id'] for one in coco['annotations']] == list(range(1, len(coco['annotations']) + 1))


def test_every_class_has_its_colour_and_its_form():
    covered = {}
    for label, name in enumerate(CLASSES[1:], 1):
        rng = np.random.default_rng(3)
        image = np.zeros((96, 96, 3))
        inside = _draw(rng, image, label)
        assert abs(image[inside].mean(0) - COLOURS[label]).max() < 45 and not image[~inside].any()
        covered[name] = int(inside.sum())
    assert covered['ring'] < covered['disk'] and covered['cross'] < covered['square']
    assert len(set(covered.values())) == 5
    with pytest.raises(ValueError, match=r"A shape is one of .*got 'star'"):
        _shape('star', np.random.default_rng(0), 8)


@pytest.mark.parametrize('make', [make_shapes, make_shape_folders])
def test_mistakes_are_named_before_anything_is_drawn(make, tmp_path):
    for wrong in (dict(num_train=0), dict(num_val=0), dict(size=0), dict(seed=-1)):
        with pytest.raises(UserError, match='Shapes are drawn on 1 or more images of 1 or more pixels'):
            make(tmp_path / 'shapes', **wrong)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r'/proc/shapes could not be written .*Choose a folder'):
        make('/proc/shapes')
