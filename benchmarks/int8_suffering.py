"""A model that loses much in plain int8: a trained one whose channels are scaled, which changes nothing in float32.

    python benchmarks/int8_suffering.py CONFIG CHECKPOINT --out CHECKPOINT [--spread 5]

ReLU(y / s) = ReLU(y) / s, so an output channel of a RepVGG block in deploy form may be divided by s where the next
block multiplies that channel by s. The factors are powers of two, from 2^-SPREAD to 2^SPREAD, drawn for each channel
of the blocks that nothing but the next block reads. tools/export.py --precision int8 --verbose on the result then
shows which attempt brings the metric back.
"""

import argparse
import re
from itertools import pairwise

import torch
from torch import Tensor

from repvgg_mm.__main__ import run_script
from repvgg_mm.commands.arguments import add_checkpoint, add_config
from repvgg_mm.commands.setup import load_config
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import convert_checkpoint

BLOCK = re.compile(r'backbone\.(stem|stage_\d+\.\d+)\.branch_reparam\.weight')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--out', required=True, help='a checkpoint in deploy form')
    parser.add_argument('--spread', type=int, default=5)
    args = parser.parse_args()

    cfg = load_config(args)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    deploy = convert_checkpoint(cfg, checkpoint, None).deploy
    weights = deploy.state_dict()
    count = scale_channels(weights, args.spread)
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=checkpoint.dataset_meta)), args.out)
    print(f'Scaled the channels of {count} blocks; wrote {args.out}')


def scale_channels(weights: dict[str, Tensor], spread: int) -> int:
    """Scale channels between the blocks of each stage of a deploy form, in place; returns how many blocks.

    The last block of a stage is left as it is: a neck or a head may read it too.
    """
    generator = torch.Generator().manual_seed(0)
    blocks = [name for name in weights if BLOCK.fullmatch(name)]
    count = 0
    for name, following in pairwise(blocks):
        if _stage(name) != _stage(following):
            continue
        channels = len(weights[name])
        exponents = torch.randint(-spread, spread + 1, (channels,), generator=generator)
        factors = torch.exp2(exponents.float())

        weights[name] /= factors[:, None, None, None]
        weights[name.replace('.weight', '.bias')] /= factors
        weights[following] *= factors[:, None, None]
        count += 1
    return count


def _stage(name: str) -> str:
    return name.split('.')[1]


if __name__ == '__main__':
    run_script(main)
