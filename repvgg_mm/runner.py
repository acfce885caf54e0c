"""From a config to a Runner of MMEngine, on any number of processes, with or without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import init_dist, is_distributed
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from .errors import UserError

REPVGG_TYPES = ('RepVGG', 'repvgg_mm.RepVGG')


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as a Runner builds it, without its data and without its initial weights."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return MODELS.build(cfg.model)


def build_runner(cfg: Config, *splits: str) -> Runner:
    """A Runner for a config whose `launcher` and `work_dir` are set.

    Without a GPU several processes talk through gloo and SyncBN becomes BN: neither nccl nor SyncBN
    runs on a CPU.

    Raises:
        UserError: the dataset of one of `splits` ('train', 'val', 'test') is not where the config
            says it is.
    """
    for split in splits:
        check_dataset(cfg, split)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        _init_dist_on_cpu(cfg)
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def check_dataset(cfg: Config, split: str) -> None:
    """Raise UserError if a folder or file that the dataset of `split` reads is missing."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:  # RepeatDataset and its like
        dataset = dataset['dataset']
    root = Path(dataset.get('data_root') or '')
    content = [*(dataset.get('data_prefix') or {}).values(), dataset.get('ann_file')]
    content = [path for path in content if isinstance(path, str) and path]
    missing = [path for path in content if not (root / path).exists()]
    if missing:
        raise UserError(
            f'{dataset.get("type")} reads {" and ".join(content)} in the folder {root}, where {" and ".join(missing)} '
            f'{"is" if len(missing) == 1 else "are"} missing: put the dataset there or set '
            f'{split}_dataloader.dataset.data_root (README, section "Datasets").')


def replace_sync_bn(cfg: Config) -> None:
    """Turn every norm of type SyncBN in the config into BN, which has the same weights."""
    for part in config_dicts(cfg._cfg_dict):
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'


def deploy_config(cfg: Config) -> Config:
    """The config of the deploy form: no weights to start from, no SyncBN, every RepVGG with deploy=True."""
    cfg = Config(cfg._cfg_dict.to_dict())
    for part in config_dicts(cfg._cfg_dict):
        part.pop('init_cfg', None)
        part.pop('pretrained', None)
        if part.get('type') in REPVGG_TYPES:
            part['deploy'] = True
    replace_sync_bn(cfg)
    cfg.pop('weights', None)
    cfg.load_from = None
    cfg.resume = False
    imports = set(cfg.get('custom_imports', {}).get('imports', [])) | {'repvgg_mm'}
    cfg.custom_imports = dict(imports=sorted(imports), allow_failed_imports=False)
    return cfg


def config_dicts(part: object) -> Iterator[ConfigDict]:
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from config_dicts(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from config_dicts(value)


def _init_dist_on_cpu(cfg: Config) -> None:
    # MMEngine's launchers read ranks and addresses from the environment and then choose a CUDA device.
    choose_device = torch.cuda.set_device
    torch.cuda.set_device = lambda device: None
    try:
        if not is_distributed():
            init_dist(cfg.launcher, backend='gloo')
    finally:
        torch.cuda.set_device = choose_device
    cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', broadcast_buffers=False))
    cfg.model_wrapper_cfg['device_ids'] = None
    replace_sync_bn(cfg)
