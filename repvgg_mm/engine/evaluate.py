"""The metric of a checkpoint or an engine, by the toolbox's own loop."""

from __future__ import annotations

import tempfile
from numbers import Number
from os import PathLike
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ..deploy.checkpoint import Checkpoint
from ..errors import UserError
from ..openmmlab.config import copy_of
from ..openmmlab.data import complete_test_set
from ..training.runner import build_runner
from .description import is_engine
from .engine import Engine
from .model import EngineModel

OF_TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')


def open_weights(path: str | PathLike, *, device: str | None = None, trust: bool = False) -> Checkpoint | Engine:
    """What a command line names: an engine by its suffix, which runs on `device`, a checkpoint otherwise.

    Raises:
        UserError: it cannot be read, or its library cannot use the device.
    """
    if is_engine(path):
        return Engine(path, device=device, threads=torch.get_num_threads())
    return Checkpoint.read(path, trust=trust)


def evaluate(cfg: Config, weights: Checkpoint | Engine) -> dict[str, float]:
    """Metrics of a checkpoint or an engine, by the config's own test set and evaluator, or its validation's.

    `cfg` is not changed; without `work_dir` nothing is kept. `cfg.log_level='WARNING'` makes it quiet.

    Raises:
        UserError: there is no data, or the weights or the engine do not fit the config.
    """
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(_test_config(cfg, folder), 'test')
        _put_in(runner, cfg, weights)
        try:
            metrics = runner.test()
        except OSError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(
                'A metric needs every image and annotation that the dataset lists, and one cannot be read '
                f'({last}). Put it there, or take it out of the list.') from None
    return {name: float(value) for name, value in metrics.items() if isinstance(value, Number)}


def _put_in(runner: Runner, cfg: Config, weights: Checkpoint | Engine) -> None:
    """Let the Runner's model have these weights, or let the engine stand in its place."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if isinstance(weights, Engine):
        runner.model = EngineModel(cfg, weights, model)
        return
    if isinstance(model, BaseTTAModel):
        model = model.module
    weights.load_into(model, cfg)


def _test_config(cfg: Config, folder: str) -> Config:
    cfg = copy_of(cfg)
    complete_test_set(cfg)
    for part in OF_TRAINING:
        cfg[part] = None  # mmseg's visualization hook would load the training set
    cfg.load_from = None  # the Runner would load it over the weights to be tested
    cfg.resume = False
    cfg.setdefault('launcher', 'none')

    if not cfg.get('work_dir'):
        cfg.work_dir = folder
        # by their names MMEngine would find those of an earlier run, or of another toolbox in the same second
        cfg.visualizer = dict(type='Visualizer', name=folder)
        cfg.experiment_name = Path(folder).name
    return cfg
