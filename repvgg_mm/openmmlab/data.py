"""What a config says of its data: whether they are there, its datasets, the colours of its classes."""

from __future__ import annotations

import colorsys
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from ..errors import UserError, first_line
from .config import config_dicts

GOLDEN_SECTION = 0.618


def innermost_dataset(dataset: Mapping) -> Mapping:
    """The settings of the data set inside a RepeatDataset and its like."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def check_dataset(cfg: Config, split: str) -> None:
    """Raise UserError if a folder or file of this machine that the dataset of `split` reads is missing."""
    loader = cfg.get(f'{split}_dataloader') or {}
    dataset = innermost_dataset(loader.get('dataset') or {})
    if dataset.get('backend_args') or '://' in str(dataset.get('data_root')):
        return  # not a folder of this machine

    root = Path(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or {}
    folders = prefix.values() if isinstance(prefix, dict) else [prefix]
    named = [*folders, dataset.get('ann_file')]

    content = [path for path in named if isinstance(path, str) and path]
    missing = [path for path in content if not (root / path).exists()]
    if missing:
        verb = 'is' if len(missing) == 1 else 'are'
        raise UserError(
            f'{dataset.get("type")} reads {" and ".join(content)} in the folder {root}, where '
            f'{" and ".join(missing)} {verb} missing: put the dataset there or set '
            f'{split}_dataloader.dataset.data_root (docs/train.md, section "Datasets").')
    _check_evaluator(cfg, split)


def _check_evaluator(cfg: Config, split: str) -> None:
    """Raise UserError if annotations are missing that an evaluator reads, which has a path of its own to them."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]

    for evaluator in evaluators:
        path = evaluator.get('ann_file')
        here = isinstance(path, str) and '://' not in path and not evaluator.get('backend_args')
        if here and not Path(path).exists():
            raise UserError(
                f'{evaluator.get("type")} reads the annotations of the validation or test set by a path of its own, '
                f'and {path} is missing. Set {split}_evaluator.ann_file, as you set the data_root of the dataset.')


class ClassesHook(Hook):
    """Says before the first step that a head has fewer classes than the data set, instead of failing at a label.

    Raises:
        UserError: such a head, named.
    """

    def before_train(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        known = getattr(dataset, 'metainfo', {})
        classes = known.get('classes')
        if not isinstance(classes, (list, tuple)) or 'thing_classes' in known:
            return  # of a panoptic data set a head of boxes predicts the things alone

        for name, module in runner.model.named_modules():
            count = getattr(module, 'num_classes', None)
            last = name.rpartition('.')[2]
            predicts = last.endswith('head') or last.isdigit()
            fewer = isinstance(count, int) and 1 < count < len(classes)  # 1: of two classes, or any object at all
            if predicts and last != 'rpn_head' and fewer:
                raise UserError(
                    f'A head predicts every class of its data set, and {type(dataset).__name__} has {len(classes)} '
                    f'({", ".join(map(str, classes[:3]))}, ...) where model.{name}.num_classes is {count}. Set '
                    f'num_classes={len(classes)} in every head.')


def validation_set(cfg: Config) -> BaseDataset:
    """The data set of `val_dataloader`.

    Raises:
        UserError: the config has none, its files are not there, or it cannot be built.
    """
    loader = cfg.get('val_dataloader') or {}
    if not loader.get('dataset'):
        raise UserError('Images come from val_dataloader, and this config has none. Add it to the config.')

    check_dataset(cfg, 'val')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    try:
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        size = len(dataset)
    except Exception as error:  # a data set is a program, and what a damaged one raises is up to it
        raise UserError(
            f'The validation set of the config cannot be read ({first_line(error)}). Check '
            'val_dataloader.dataset and its files.') from None

    if not size:
        raise UserError('Images come from val_dataloader, and its data set has none. Put the data there.')
    return dataset


def training_set(cfg: Config) -> BaseDataset:
    """The config's training set with the pipeline of its tests, from which quantising takes its images.

    Raises:
        UserError: the config has no training data or no test, or the data are missing.
    """
    tested = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    if not cfg.get('train_dataloader') or not tested:
        lacking = 'the first' if tested else 'the second'
        raise UserError(
            'Quantising takes images of the train_dataloader through the pipeline of the val_dataloader, '
            f'and this config lacks {lacking}. Add it.')

    check_dataset(cfg, 'train')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    settings = copy.deepcopy(innermost_dataset(cfg.train_dataloader.dataset))
    pipeline = innermost_dataset(tested.dataset).pipeline
    for part in config_dicts(settings):
        if 'pipeline' in part:
            part.pipeline = pipeline

    dataset = DATASETS.build(settings)
    if not len(dataset):
        raise UserError(
            f'Quantising measures ranges on training images, and this {type(dataset).__name__} has none. '
            'Check train_dataloader.dataset.')
    return dataset


def complete_test_set(cfg: Config) -> None:
    """Let a config without a test set test on its validation set; UserError if it has none or no evaluator."""
    for part in ('dataloader', 'evaluator'):
        if cfg.get(f'test_{part}') is None:
            cfg[f'test_{part}'] = cfg.get(f'val_{part}')
        if cfg[f'test_{part}'] is None:
            raise UserError(
                'A metric needs images with annotations and an evaluator, and this config has neither '
                f'test_{part} nor val_{part}. Add one.')
    cfg.test_cfg = cfg.get('test_cfg') or dict(type='TestLoop')


def palette_of(classes: Sequence[str], palette: Sequence | None) -> list[tuple[int, int, int]]:
    """RGB of each class and of what else `palette` holds; made up for classes past its end."""
    colours = [tuple(map(int, colour)) for colour in palette or ()]
    colours += [_made_up_colour(number) for number in range(len(colours), len(classes))]
    return colours


def _made_up_colour(number: int) -> tuple[int, int, int]:
    """Hues a golden section apart, so that neighbours differ."""
    hue = number * GOLDEN_SECTION % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
