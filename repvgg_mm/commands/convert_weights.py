"""Rename or fuse weights of a bare backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..deploy.weight_file import convert_weight_file
from ..errors import UserError
from ..files.checkpoint import write_checkpoint


def run(args: argparse.Namespace) -> None:
    if Path(args.target).exists() and not args.overwrite:
        raise UserError(f'DST is a new file, and {args.target} exists. Choose another name, or add --overwrite.')

    converted = convert_weight_file(args.source, args.arch, args.to, deploy=args.deploy, trust=args.trust_checkpoint)
    print(converted.summary)
    for name, error in converted.errors.items():
        print(f'  {name}: relative error {error:.1e}')

    write_checkpoint(args.target, converted.checkpoint)
    print(f'Wrote {args.target}.')
