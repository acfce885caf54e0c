"""Evaluate a checkpoint or an engine."""

from __future__ import annotations

import argparse

from mmengine.config import Config

from ..engine.description import is_engine
from ..engine.evaluate import evaluate, open_weights
from ..errors import UserError
from ..openmmlab.config import kind_of, toolbox_of
from ..openmmlab.data import complete_test_set
from .screen import Screen, metrics_text, open_screen
from .setup import load_config


def run(args: argparse.Namespace) -> None:
    with open_screen(args.verbose) as screen:
        test(args, screen)


def test(args: argparse.Namespace, screen: Screen) -> None:
    """Evaluate with what the flags ask for; the metrics are the last line."""
    if args.device and not is_engine(args.checkpoint):
        raise UserError(
            f'--device is where an engine runs, and {args.checkpoint} is a checkpoint, which MMEngine puts on a GPU if '
            'there is one. Leave it out; on a machine with a GPU, CUDA_VISIBLE_DEVICES= in front leaves the CPU.')

    cfg = load_config(args)
    screen.work_dir = cfg.work_dir
    complete_test_set(cfg)
    if args.show or args.show_dir:
        show_predictions(cfg, args.show_dir, show=args.show, wait_time=args.wait_time)
    if args.out:
        save_predictions(cfg, args.out)
    if args.tta:
        if is_engine(args.checkpoint):
            raise UserError(
                '--tta predicts images of several sizes, flipped too, with a model, and '
                f'{args.checkpoint} is an engine. Give the checkpoint, or leave --tta out.')
        use_test_time_augmentation(cfg)

    weights = open_weights(args.checkpoint, device=args.device, trust=args.trust_checkpoint)
    metrics = evaluate(cfg, weights)
    screen.say(f'{args.checkpoint}: {metrics_text(metrics)}')


def show_predictions(cfg: Config, folder: str | None, *, show: bool, wait_time: float) -> None:
    """Let the config's visualization hook draw every prediction; UserError if it has none."""
    if 'visualization' not in cfg.get('default_hooks', {}):
        raise UserError(
            'Pictures are drawn by the visualization hook, which this config does not have. '
            "Add default_hooks=dict(visualization=dict(type='SegVisualizationHook')).")

    switch = 'enable' if toolbox_of(cfg) == 'mmpretrain' else 'draw'
    settings = {switch: True, 'interval': 1, 'show': show, 'wait_time': wait_time}
    cfg.default_hooks.visualization.update(settings)
    if folder:
        cfg.visualizer.save_dir = folder


def save_predictions(cfg: Config, out: str) -> None:
    """Let the evaluators write what is predicted: a .pkl of everything, or the masks of IoUMetric in a folder.

    Raises:
        UserError: a folder was asked for and the config evaluates something else than masks.
    """
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    kinds = [kind_of(evaluator) for evaluator in evaluators]

    if out.endswith('.pkl'):
        dump = 'mmdet.DumpDetResults' if toolbox_of(cfg) == 'mmdet' else 'mmengine.DumpResults'
        cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]
    elif kinds == ['IoUMetric']:
        evaluators[0].update(output_dir=out, keep_results=True)
    else:
        raise UserError(
            'A folder receives the masks of IoUMetric, and this config evaluates with '
            f'{", ".join(kinds)}. Give --out a name in .pkl.')


def use_test_time_augmentation(cfg: Config) -> None:
    """Test the config's `tta_model` on its `tta_pipeline`; UserError if it lacks one."""
    missing = [key for key in ('tta_pipeline', 'tta_model') if key not in cfg]
    if missing:
        raise UserError(
            '--tta needs tta_model and tta_pipeline in the config, and this one lacks '
            f'{" and ".join(missing)}. Add them or test without --tta.')

    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model
