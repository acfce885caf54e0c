"""The generated dataset: what one call writes, the next one replaces, and nothing else goes."""

from __future__ import annotations

import json

import pytest

from repvgg_mm.demo.shapes import make_shape_folders, make_shapes

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
