"""Write the generated dataset of the demo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..demo.shapes import make_shape_folders, make_shapes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Write the generated dataset of the demo.')
    parser.add_argument('root', help='folder to write to')
    parser.add_argument(
        '--classification', action='store_true',
        help='folders of images as ImageNet has them, instead of masks and boxes')
    parser.add_argument('--train', type=int, help='training images (800), or those of each class (200)')
    parser.add_argument('--val', type=int, help='validation images (80), or those of each class (40)')
    parser.add_argument('--size', type=int, help='side in pixels (96, or 64)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)

    options = dict(num_train=args.train, num_val=args.val, size=args.size, seed=args.seed)
    given = {name: value for name, value in options.items() if value is not None}
    make = make_shape_folders if args.classification else make_shapes
    print(make(args.root, **given))
