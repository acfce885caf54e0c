"""Write the generated dataset of the demo."""

from __future__ import annotations

import argparse

from ..demo.shapes import make_shape_folders, make_shapes


def run(args: argparse.Namespace) -> None:
    options = dict(num_train=args.train, num_val=args.val, size=args.size, seed=args.seed)
    given = {name: value for name, value in options.items() if value is not None}
    make = make_shape_folders if args.classification else make_shapes
    print(make(args.root, **given))
