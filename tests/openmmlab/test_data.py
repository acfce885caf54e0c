"""What a config says of its data, on a generated dataset of shapes."""

from __future__ import annotations

import colorsys
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope, init_default_scope
from tool_runs import CONFIG, ROOT
from torch import nn

from repvgg_mm import UserError
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.openmmlab.config import import_toolbox, read_config
from repvgg_mm.openmmlab.data import (
    ClassesHook,
    check_dataset,
    complete_test_set,
    innermost_dataset,
    palette_of,
    training_set,
    validation_set,
)

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=3, num_val=2, size=32)


@pytest.fixture
def cfg(shapes):
    roots = {f'{split}_dataloader.dataset.data_root': str(shapes) for split in ('train', 'val', 'test')}
    cfg = read_config(ROOT / CONFIG, roots)
    import_toolbox(cfg)
    init_default_scope('mmseg')
    yield cfg
    DefaultScope._instance_dict.clear()


def repeated(dataset: dict) -> ConfigDict:
    return ConfigDict(type='RepeatDataset', times=4, dataset=ConfigDict(type='RepeatDataset', times=2, dataset=dataset))


def test_the_innermost_dataset(cfg):
    dataset = cfg.train_dataloader.dataset
    assert innermost_dataset(repeated(dataset)) is innermost_dataset(dataset)
    assert innermost_dataset({}) == {}


@pytest.mark.parametrize('wrap', [lambda dataset: dataset, repeated])
def test_a_folder_that_is_missing_is_named(cfg, wrap):
    check_dataset(cfg, 'train')
    cfg.train_dataloader.dataset.data_prefix.seg_map_path = 'absent'
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    with pytest.raises(UserError, match=r'where absent is missing: put the dataset there or set train_dataloader\.'):
        check_dataset(cfg, 'train')
    check_dataset(cfg, 'val')


@pytest.mark.parametrize('dataset', [
    dict(data_root='s3://bucket/shapes', data_prefix=dict(img_path='images')),
    dict(data_root='shapes', ann_file='train.json', backend_args=dict(backend='petrel'))])
def test_data_elsewhere_are_not_looked_for_on_this_machine(dataset):
    check_dataset(Config(dict(train_dataloader=dict(dataset=dataset))), 'train')
    dataset.update(data_root='/absent', backend_args=None)
    with pytest.raises(UserError, match=r'in the folder /absent, where .* missing'):
        check_dataset(Config(dict(train_dataloader=dict(dataset=dataset))), 'train')


def test_a_split_without_data_has_none_to_check():
    check_dataset(Config(dict(model=dict())), 'test')
    check_dataset(Config(dict(test_dataloader=None)), 'test')


def test_the_validation_set(cfg):
    dataset = validation_set(cfg)
    assert len(dataset) == 2
    assert all('val' in dataset.get_data_info(i)['img_path'] for i in range(2))
    cfg.val_dataloader.dataset.nonsense = 1
    with pytest.raises(UserError, match=r'validation set of the config cannot be read .*nonsense.*Check val_'):
        validation_set(cfg)
    cfg.val_dataloader = None
    with pytest.raises(UserError, match='Images come from val_dataloader, and this config has none'):
        validation_set(cfg)


def test_an_empty_validation_set(cfg, tmp_path):
    root = make_shapes(tmp_path / 'shapes', num_train=1, num_val=1, size=32)
    for path in root.rglob('val/*'):
        path.unlink()
    cfg.val_dataloader.dataset.update(data_root=str(root), serialize_data=False)
    with pytest.raises(UserError, match=r'its data set has none\. Put the data there'):
        validation_set(cfg)


@pytest.mark.parametrize('wrap', [lambda dataset: dataset, repeated])
def test_training_images_go_through_the_pipeline_of_the_tests(cfg, wrap):
    tested = [step.type for step in innermost_dataset(cfg.val_dataloader.dataset).pipeline]
    trained = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert tested != trained
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    before = cfg.pretty_text
    dataset = training_set(cfg)
    assert len(dataset) == 3  # each image once
    assert [type(step).__name__ for step in dataset.pipeline.transforms] == tested
    assert all('train' in dataset.get_data_info(i)['img_path'] for i in range(3))
    assert cfg.pretty_text == before


@pytest.mark.parametrize('missing, lacking', [(['train'], 'the first'), (['val', 'test'], 'the second')])
def test_quantising_needs_training_and_test(cfg, missing, lacking):
    for split in missing:
        cfg[f'{split}_dataloader'] = None
    with pytest.raises(UserError, match=rf'this config lacks {lacking}\. Add it'):
        training_set(cfg)


def test_a_config_without_a_test_is_tested_on_its_validation_set(cfg):
    val_loader, val_evaluator = cfg.val_dataloader, cfg.val_evaluator
    for name in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        cfg[name] = None
    complete_test_set(cfg)
    assert cfg.test_dataloader == val_loader and cfg.test_evaluator == val_evaluator
    assert cfg.test_cfg == dict(type='TestLoop')
    cfg.test_dataloader = own = ConfigDict(dataset=dict(type='Own'))
    complete_test_set(cfg)
    assert cfg.test_dataloader == own
    cfg.test_evaluator = cfg.val_evaluator = None
    with pytest.raises(UserError, match='has neither test_evaluator nor val_evaluator'):
        complete_test_set(cfg)


def test_colours_are_the_palettes_and_then_made_up():
    given = [[1, 2, 3], [4, 5, 6]]
    assert palette_of(['a', 'b'], given) == [(1, 2, 3), (4, 5, 6)]
    assert palette_of(['a'], given) == [(1, 2, 3), (4, 5, 6)]
    names = [str(number) for number in range(12)]
    found = palette_of(names, given)
    assert found[:2] == [(1, 2, 3), (4, 5, 6)] and found[2:] == palette_of(names, None)[2:]
    hues = [colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0] for colour in palette_of(names, None)]
    for first, second in itertools.pairwise(hues):
        distance = abs(first - second)
        assert min(distance, 1 - distance) == pytest.approx(0.382, abs=0.01)  # neighbours differ
    assert len(set(found)) == 12


class Runner:
    """What ClassesHook asks of a runner: the data set of a loader, and a model."""

    def __init__(self, classes: object, **counts: int) -> None:
        dataset = SimpleNamespace(metainfo=dict(classes=classes))
        self.train_dataloader = SimpleNamespace(dataset=dataset)
        self.model = nn.Module()
        for name, count in counts.items():
            self.model.add_module(name, nn.Module())
            self.model.get_submodule(name).num_classes = count


@pytest.mark.parametrize('name', ['decode_head', 'auxiliary_head', 'bbox_head', 'mask_head'])
def test_a_head_with_fewer_classes_is_named(name):
    with pytest.raises(UserError, match=rf'has 5 \(a, b, c, \.\.\.\) where model\.{name}\.num_classes is 3\. Set'):
        ClassesHook().before_train(Runner(tuple('abcde'), backbone=2, **{name: 3}))


def test_a_panoptic_detector_has_boxes_of_things_alone():
    runner = Runner(tuple('abcde'), bbox_head=3, semantic_head=3)
    runner.train_dataloader.dataset.metainfo['thing_classes'] = tuple('abc')
    ClassesHook().before_train(runner)


@pytest.mark.parametrize('runner', [
    Runner(tuple('abcde'), decode_head=5), Runner(tuple('abcde'), decode_head=7), Runner(tuple('abcde'), rpn_head=1),
    Runner(tuple('ab'), decode_head=1), Runner(None, decode_head=3), Runner('abcde', decode_head=3)])
def test_other_heads_and_data_sets_are_no_concern(runner):
    ClassesHook().before_train(runner)


@pytest.mark.parametrize('several', [False, True])
def test_annotations_that_an_evaluator_reads_by_itself(tmp_path, several):
    evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'val.json'))
    cfg = Config(dict(val_evaluator=[dict(type='DumpResults'), evaluator] if several else evaluator))
    with pytest.raises(UserError, match=r'CocoMetric reads .*val\.json is missing\. Set val_evaluator\.ann_file'):
        check_dataset(cfg, 'val')
    check_dataset(cfg, 'test')
    (tmp_path / 'val.json').touch()
    check_dataset(cfg, 'val')
