"""A trained model, ready to use in a program or notebook."""

from __future__ import annotations

from os import PathLike

import torch
from mmengine.config import Config
from torch import nn

from ..environment import check_environment
from ..openmmlab.config import copy_of, import_toolbox, read_config
from ..openmmlab.device import usable_device
from ..openmmlab.model import replace_sync_bn
from .checkpoint import Checkpoint, load_model


def load(
    config: str | PathLike | Config, checkpoint: str | PathLike, device: str | torch.device | None = None,
    *, trust: bool = False,
) -> nn.Module:
    """The model of a config with the weights of a checkpoint, in evaluation mode.

    The toolboxes' own `init_model` cannot read the checkpoints that MMEngine writes with torch 2.6 and newer. Norms of
    type SyncBN, which need several processes, become BN with the same weights.

    Args:
        config: file, name of a config that comes with this package, or config. `model.cfg` is it, which the toolboxes'
            `inference_model` and `inference_detector` look at.
        checkpoint: file, URL or hub name; read without running code from it.
        device: a GPU by default if there is one.
        trust: unpickle whatever the file contains.

    Raises:
        UserError: a file that cannot be read, or weights that are not those of the model.
    """
    check_environment()
    cfg = copy_of(config) if isinstance(config, Config) else read_config(config)
    import_toolbox(cfg)
    replace_sync_bn(cfg)

    read = Checkpoint.read(checkpoint, trust=trust)
    model = load_model(cfg, read)
    model.cfg = cfg
    model.dataset_meta = read.dataset_meta
    return model.to(usable_device(device))
