"""Rename or fuse weights of a bare backbone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..deploy.weight_file import TARGETS, convert_weight_file
from ..errors import UserError
from ..files.checkpoint import write_checkpoint
from .flags import add_trust


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Convert a file of a RepVGG backbone or classifier, without a config.')
    parser.add_argument('source', metavar='SRC', help='file of any layout (official, mmpretrain, timm) and form')
    parser.add_argument('target', metavar='DST', help='file to write: .pth, or .safetensors')
    parser.add_argument('-a', '--arch', required=True, help='variant, such as RepVGG-A0')
    parser.add_argument('--to', choices=TARGETS, default='native', help="names to write; native is mmpretrain's")
    parser.add_argument('--deploy', action='store_true', help='fuse every block')
    parser.add_argument('--overwrite', action='store_true', help='replace a file that is there')
    add_trust(parser)
    args = parser.parse_args(argv)

    if Path(args.target).exists() and not args.overwrite:
        raise UserError(f'DST is a new file, and {args.target} exists. Choose another name, or add --overwrite.')

    converted = convert_weight_file(args.source, args.arch, args.to, deploy=args.deploy, trust=args.trust_checkpoint)
    print(converted.summary)
    for name, error in converted.errors.items():
        print(f'  {name}: relative error {error:.1e}')

    write_checkpoint(args.target, converted.checkpoint)
    print(f'Wrote {args.target}.')
