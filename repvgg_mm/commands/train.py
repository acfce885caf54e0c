"""Train a model, or go on with a training."""

from __future__ import annotations

import argparse

from mmengine.config import Config

from ..deploy.checkpoint import PAIR
from ..errors import UserError
from ..training.amp import use_amp
from ..training.resume import explained_resuming, resume_from, resume_latest
from ..training.runner import build_runner
from .screen import ProgressHook, Screen, open_screen
from .setup import load_config


def run(args: argparse.Namespace) -> None:
    with open_screen(args.verbose) as screen:
        train(args, screen)


def train(args: argparse.Namespace, screen: Screen) -> None:
    """Build the Runner of a config and let it train."""
    cfg = load_config(args)
    _check_form(cfg, args)
    screen.work_dir = cfg.work_dir
    if args.resume:
        latest = resume_latest(cfg, trust=args.trust_checkpoint)
        screen.say(f'Resuming from {latest}')
    elif cfg.get('resume') and cfg.get('load_from'):
        resume_from(cfg, cfg.load_from, trust=args.trust_checkpoint)
    if args.amp or args.amp_dtype:
        use_amp(cfg.optim_wrapper, args.amp_dtype)

    runner = build_runner(cfg, 'train', 'val')
    if not args.verbose:
        runner.register_hook(ProgressHook(screen))
    with explained_resuming(cfg.get('load_from')):
        runner.train()


def _check_form(cfg: Config, args: argparse.Namespace) -> None:
    """Raise UserError if a deploy.py is to be trained from nothing."""
    if cfg.get(PAIR) and not (args.resume or cfg.get('load_from')):
        raise UserError(
            f'The training form is trained, and {args.config} describes a deploy form, which would start here from '
            'random weights. Give the config that it was converted from; to go on with the deploy form itself, add '
            '--cfg-options load_from=deploy.pth.')
