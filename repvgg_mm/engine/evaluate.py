"""The metric of a checkpoint or an engine, by the toolbox's own loop."""

from __future__ import annotations

import tempfile
from numbers import Number
from os import PathLike
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper

from ..convert.weights import load_strictly
from ..errors import UserError
from ..files.checkpoint import read_checkpoint
from ..openmmlab.data import complete_test_set
from ..openmmlab.runner import build_runner
from .engine import Engine, is_engine
from .model import EngineModel


def evaluate(cfg: Config, weights: str | PathLike, *, trust: bool = False) -> dict[str, float]:
    """Metrics of a checkpoint or an engine, by the config's own test set and evaluator, or its validation's.

    `cfg` is not changed; without `work_dir` nothing is kept. `cfg.log_level='WARNING'` makes it quiet.

    Raises:
        UserError: there is no data, or the weights or the engine do not fit the config.
    """
    engine = Engine(weights, threads=torch.get_num_threads()) if is_engine(weights) else None
    checkpoint = read_checkpoint(weights, trust=trust) if engine is None else None
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(_test_config(cfg, folder), 'test')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if engine is None:
            load_strictly(model.module if isinstance(model, BaseTTAModel) else model, checkpoint, str(weights))
        else:
            runner.model = EngineModel(cfg, engine, model)
        try:
            metrics = runner.test()
        except OSError as error:
            raise UserError('A metric needs every image and annotation that the dataset lists, and one cannot be read '
                            f'({str(error).strip().splitlines()[-1]}). Put it there, or take it out of the list.'
                            ) from None
        return {name: float(value) for name, value in metrics.items() if isinstance(value, Number)}


def _test_config(cfg: Config, folder: str) -> Config:
    cfg = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename)
    complete_test_set(cfg)
    for part in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg[part] = None  # mmseg's visualization hook would load the training set
    cfg.load_from, cfg.resume = None, False  # the Runner would load them over the weights to be tested
    cfg.setdefault('launcher', 'none')
    if not cfg.get('work_dir'):
        cfg.work_dir = folder
        # by their names MMEngine would find those of an earlier run, or of another toolbox in the same second
        cfg.visualizer = dict(type='Visualizer', name=folder)
        cfg.experiment_name = Path(folder).name
    return cfg
