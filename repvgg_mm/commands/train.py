"""Train a model, or go on with a training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..openmmlab.amp import use_amp
from ..openmmlab.resume import resume_from, resume_latest
from ..openmmlab.runner import build_runner
from .flags import add_launch, add_trust, load_config, parser_with_config
from .screen import ProgressHook, Screen, open_screen


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_with_config('Train a segmentor or detector.')
    add_launch(parser)
    add_trust(parser)
    parser.add_argument('--resume', action='store_true', help='go on from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--amp-dtype', choices=['float16', 'bfloat16'], help='mixed precision in this type')
    args = parser.parse_args(argv)
    with open_screen(args.verbose) as screen:
        train(args, screen)


def train(args: argparse.Namespace, screen: Screen) -> None:
    """Build the Runner of a config and let it train."""
    cfg = load_config(args)
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
    runner.train()
