"""What a config says of its data: whether they are there, and the validation set."""

from __future__ import annotations

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope

from ..errors import UserError, first_line
from .config import config_dicts


def check_dataset(cfg: Config, split: str) -> None:
    """Raise UserError if a folder or file of this machine that the dataset of `split` reads is missing."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:  # RepeatDataset and its like
        dataset = dataset['dataset']
    if dataset.get('backend_args') or '://' in str(dataset.get('data_root')):
        return  # not a folder of this machine
    root = Path(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or {}
    content = [*(prefix.values() if isinstance(prefix, dict) else [prefix]), dataset.get('ann_file')]
    content = [path for path in content if isinstance(path, str) and path]
    missing = [path for path in content if not (root / path).exists()]
    if missing:
        raise UserError(
            f'{dataset.get("type")} reads {" and ".join(content)} in the folder {root}, where {" and ".join(missing)} '
            f'{"is" if len(missing) == 1 else "are"} missing: put the dataset there or set '
            f'{split}_dataloader.dataset.data_root (README, section "Datasets").')


def validation_set(cfg: Config) -> object:
    """The data set of `val_dataloader`.

    Raises:
        UserError: the config has none, its files are not there, or it cannot be built.
    """
    if not (cfg.get('val_dataloader') or {}).get('dataset'):
        raise UserError('Images come from val_dataloader, and this config has none. Add it to the config.')
    check_dataset(cfg, 'val')
    try:
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        if not len(dataset):
            raise UserError('Images come from val_dataloader, and its data set has none. Put the data there.')
        return dataset
    except UserError:
        raise
    except Exception as error:  # a data set is a program, and what a damaged one raises is up to it
        raise UserError(f'The validation set of the config cannot be read ({first_line(error)}). Check '
                        'val_dataloader.dataset and its files.') from None


def training_set(cfg: Config) -> BaseDataset:
    """The config's training set with its test pipeline; raises UserError as `calibration_images`."""
    tested = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    if not cfg.get('train_dataloader') or not tested:
        raise UserError('Quantising takes images of the train_dataloader through the pipeline of the val_dataloader, '
                        f'and this config lacks {"the first" if tested else "the second"}. Add it.')
    check_dataset(cfg, 'train')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    part = copy.deepcopy(_innermost(cfg.train_dataloader.dataset))
    for piece in config_dicts(part):
        if 'pipeline' in piece:
            piece.pipeline = _innermost(tested.dataset).pipeline
    dataset = DATASETS.build(part)
    if not len(dataset):
        raise UserError(f'Quantising measures ranges on training images, and this {type(dataset).__name__} has none. '
                        'Check train_dataloader.dataset.')
    return dataset


def _innermost(dataset: dict) -> dict:
    while 'dataset' in dataset:  # RepeatDataset and its like
        dataset = dataset['dataset']
    return dataset


def complete_test_set(cfg: Config) -> None:
    """Let a config without a test set test on its validation set; UserError if it has none or no evaluator."""
    for part in ('dataloader', 'evaluator'):
        if cfg.get(f'test_{part}') is None:
            cfg[f'test_{part}'] = cfg.get(f'val_{part}')
        if cfg[f'test_{part}'] is None:
            raise UserError(f'A metric needs images with annotations and an evaluator, and this config has neither '
                            f'test_{part} nor val_{part}. Add one.')
    cfg.test_cfg = cfg.get('test_cfg') or dict(type='TestLoop')
