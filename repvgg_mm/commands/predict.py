"""Draw what a model predicts."""

from __future__ import annotations

from collections.abc import Sequence

from ..inference.predict import predict_files
from .flags import add_checkpoint, load_config, parser_with_config
from .screen import open_screen


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_with_config('Draw predictions of images and videos: classes with a legend, or boxes and masks.')
    add_checkpoint(parser, engine=True)
    parser.add_argument('images', nargs='+', help="images, videos, folders of them, quoted patterns such as 'a/*.jpg'")
    parser.add_argument(
        '--out', required=True,
        help='folder for the pictures (.png) and videos (.mp4), in folders like those of the sources')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw detections from this score on')
    parser.add_argument('--device', help='cuda by default if there is a GPU, else cpu')
    parser.add_argument('--overwrite', action='store_true', help='replace pictures that exist')
    args = parser.parse_args(argv)

    with open_screen(args.verbose) as screen:
        cfg = load_config(args)
        written = predict_files(
            cfg, args.checkpoint, args.images, args.out,
            score_thr=args.score_thr, device=args.device, overwrite=args.overwrite, trust=args.trust_checkpoint)
        screen.say(f'Drew {len(written)} in {args.out}, such as {written[0]}')
