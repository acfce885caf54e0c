"""Accuracy on the whole validation set beside latency at batch 1: PyTorch's forms and every engine of a checkpoint.

    python benchmarks/engines.py CONFIG CHECKPOINT --out DIR --shape H W [--rounds 21] [--latency-only]

CHECKPOINT is in training form, H W the size that the network sees in tests, padding included. Every row computes the
same from the same normalised image: full-size logits, or decoded boxes and scores. Times are medians of interleaved
calls. Engines of this checkpoint that are in DIR already are used again, so that times can be taken by themselves.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from repvgg_mm.block import branch_by_branch
from repvgg_mm.commands.flags import add_checkpoint, load_config, parser_with_config, run_tool
from repvgg_mm.convert.measure import Latency, cpu_name, interleaved_latency
from repvgg_mm.convert.weights import load_strictly
from repvgg_mm.deploy.config import deploy_config
from repvgg_mm.engine.engine import Engine, is_engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.export.export import PRECISIONS, Target, export, load_deploy
from repvgg_mm.export.networks import network_of
from repvgg_mm.files.atomic import sha256_of
from repvgg_mm.files.checkpoint import read_checkpoint
from repvgg_mm.files.download import local_path
from repvgg_mm.openmmlab.model import build_model

METRICS = ('mIoU', 'coco/bbox_mAP')


def main() -> None:
    parser = parser_with_config('Accuracy and latency of both forms and of every engine.')
    add_checkpoint(parser)
    parser.add_argument('--out', type=Path, required=True, help='folder for a folder of each engine')
    parser.add_argument('--shape', type=int, nargs=2, required=True, metavar=('H', 'W'))
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--latency-only', action='store_true')
    args = parser.parse_args()
    cfg = load_config(args)
    cfg.log_level = 'WARNING'
    engines = {f'{engine} {precision}': exported(cfg, args, Target(engine, precision, args.shape))
               for engine, precision in [('onnx', 'fp32'), *(('openvino', precision) for precision in PRECISIONS)]}

    scores = {}
    if not args.latency_only:
        scores['training form'] = score(cfg, args.checkpoint)
        scores['deploy form'] = score(deploy_config(cfg), args.checkpoint)
        scores |= {name: score(cfg, engine.path) for name, engine in engines.items()}
    times = latencies(cfg, args, engines)
    size = 'x'.join(map(str, args.shape))
    print(f'\ntorch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} threads, 1 image of {size}, '
          f'{args.rounds} interleaved rounds')
    print('| | metric | ms, median (quartiles) | times as fast |\n|---|---|---|---|')
    first = next(iter(times.values())).median_ms
    for name, (median, lower, upper) in times.items():
        print(f'| {name} | {scores.get(name, "")} | {median:.1f} ({lower:.1f} to {upper:.1f}) | {first / median:.2f} |')


def exported(cfg, args, target: Target) -> Engine:
    """The engine of `target` in its folder, made unless it is there."""
    folder = args.out / f'{target.engine}_{target.precision}'
    for path in sorted(folder.glob('engine.*')):
        if is_engine(path):
            engine = Engine(path, threads=torch.get_num_threads())
            if engine.meta['source_sha256'] == sha256_of(local_path(args.checkpoint)):
                return engine
    path = export(cfg, args.checkpoint, folder, target, overwrite=True, trust=args.trust_checkpoint).path
    return Engine(path, threads=torch.get_num_threads())


def score(cfg, weights) -> str:
    metrics = evaluate(cfg, weights)
    return ', '.join(f'{name} {metrics[name]:.4g}' for name in METRICS if name in metrics)


def latencies(cfg, args, engines: dict[str, Engine]) -> dict[str, Latency]:
    trained = build_model(cfg).eval()
    load_strictly(trained, read_checkpoint(args.checkpoint, trust=args.trust_checkpoint), args.checkpoint)
    trained = network_of(trained)
    deploy = network_of(load_deploy(cfg, args.checkpoint, Target(shape=args.shape), trust=args.trust_checkpoint)[0])
    image = torch.randn(1, 3, *args.shape)
    return interleaved_latency({
        'training form, branch by branch': partial(apart, trained, image),
        'training form': partial(trained, image),
        'deploy form': partial(deploy, image),
        'deploy form, bf16 autocast': partial(autocast, deploy, image),
        **{name: partial(engine, image.numpy()) for name, engine in engines.items()}}, args.rounds)


def apart(network: nn.Module, image: torch.Tensor) -> None:
    with branch_by_branch(network):
        network(image)


def autocast(network: nn.Module, image: torch.Tensor) -> None:
    with torch.autocast('cpu', torch.bfloat16):
        network(image)


if __name__ == '__main__':
    run_tool(main)
