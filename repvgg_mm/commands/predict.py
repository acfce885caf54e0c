"""Draw what a model predicts."""

from __future__ import annotations

import argparse

from ..inference.predict import predict_files
from .screen import open_screen
from .setup import load_config


def run(args: argparse.Namespace) -> None:
    with open_screen(args.verbose) as screen:
        cfg = load_config(args)
        written = predict_files(
            cfg, args.checkpoint, args.images, args.out,
            score_thr=args.score_thr, device=args.device, overwrite=args.overwrite, trust=args.trust_checkpoint)
        screen.say(f'Drew {len(written)} in {args.out}, such as {written[0]}')
