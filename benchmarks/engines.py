"""Accuracy on the whole validation set, latency at batch 1 and file size: PyTorch's forms and a checkpoint's engines.

    python benchmarks/engines.py CONFIG CHECKPOINT --out DIR --shape H W [--rounds 21] [--latency-only]

CHECKPOINT is in training form, H W the size that the network sees in tests, padding included. Every row computes the
same from the same normalised image: full-size logits, or decoded boxes and scores. Times are medians of interleaved
calls. Engines of this checkpoint that are in DIR already are used again, so that times can be taken by themselves.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from repvgg_mm.__main__ import run_script
from repvgg_mm.block import branch_by_branch
from repvgg_mm.commands.arguments import add_checkpoint, add_config
from repvgg_mm.commands.setup import load_config
from repvgg_mm.convert.measure import Latency, cpu_name, interleaved_latency
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.deploy.config import deploy_config
from repvgg_mm.engine.description import is_engine
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.export.export import export, load_deploy
from repvgg_mm.export.networks import network_of
from repvgg_mm.export.target import Target

METRICS = ('mIoU', 'coco/bbox_mAP')
KINDS = (
    ('onnx', 'fp32'), ('onnx', 'fp16'), ('onnx', 'int8'),
    ('openvino', 'fp32'), ('openvino', 'bf16'), ('openvino', 'int8'))
MEGABYTE = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description='Accuracy and latency of both forms and of every engine.')
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--out', type=Path, required=True, help='folder for a folder of each engine')
    parser.add_argument('--shape', type=int, nargs=2, required=True, metavar=('H', 'W'))
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--latency-only', action='store_true')
    args = parser.parse_args()
    cfg = load_config(args)
    cfg.log_level = 'WARNING'
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)

    engines = {}
    for engine, precision in KINDS:
        target = Target(engine, precision, args.shape)
        engines[f'{engine} {precision}'] = exported(cfg, checkpoint, args.out, target)

    scores = {}
    if not args.latency_only:
        scores['training form'] = score(cfg, checkpoint)
        scores['deploy form'] = score(deploy_config(cfg), checkpoint)
        for name, engine in engines.items():
            scores[name] = score(cfg, engine)

    trained = load_model(cfg, checkpoint)
    deploy, _ = load_deploy(cfg, checkpoint, Target(shape=args.shape))
    sizes = {'training form': weights_of(trained), 'deploy form': weights_of(deploy)}
    sizes |= {name: size_of(engine) for name, engine in engines.items()}
    times = latencies(trained, deploy, args.shape, engines, args.rounds)
    size = 'x'.join(map(str, args.shape))
    print(f'\ntorch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} threads, 1 image of {size}, '
          f'{args.rounds} interleaved rounds')
    print('| | metric | ms, median (quartiles) | times as fast | MB |\n|---|---|---|---|---|')
    first = next(iter(times.values())).median_ms
    for name, (median, lower, upper) in times.items():
        print(f'| {name} | {scores.get(name, "")} | {median:.1f} ({lower:.1f} to {upper:.1f}) | {first / median:.2f} | '
              f'{sizes.get(name, "")} |')


def exported(cfg: Config, checkpoint: Checkpoint, out: Path, target: Target) -> Engine:
    """The engine of `target` in its folder, made unless it is there."""
    folder = out / f'{target.engine}_{target.precision}'
    for path in sorted(folder.glob('engine.*')):
        if is_engine(path):
            engine = Engine(path, threads=torch.get_num_threads())
            if engine.description.source_sha256 == checkpoint.sha256:
                return engine

    path = export(cfg, checkpoint, folder, target, overwrite=True).path
    return Engine(path, threads=torch.get_num_threads())


def weights_of(model: nn.Module) -> str:
    bytes_of_all = sum(tensor.nbytes for tensor in model.state_dict().values())
    return f'{bytes_of_all / MEGABYTE:.1f}'


def size_of(engine: Engine) -> str:
    """Of its files without the description, in megabytes."""
    files = [engine.path.with_name(name) for name in engine.description.files]
    bytes_of_all = sum(file.stat().st_size for file in files)
    return f'{bytes_of_all / MEGABYTE:.1f}'


def score(cfg: Config, weights: Checkpoint | Engine) -> str:
    metrics = evaluate(cfg, weights)
    return ', '.join(f'{name} {metrics[name]:.4g}' for name in METRICS if name in metrics)


def latencies(
    trained: nn.Module, deploy: nn.Module, shape: list[int], engines: Mapping[str, Engine], rounds: int
) -> dict[str, Latency]:
    trained, deploy = network_of(trained), network_of(deploy)
    image = torch.randn(1, 3, *shape)
    calls = {
        'training form, branch by branch': partial(apart, trained, image),
        'training form': partial(trained, image),
        'deploy form': partial(deploy, image),
        'deploy form, bf16 autocast': partial(autocast, deploy, image),
    }
    for name, engine in engines.items():
        calls[name] = partial(engine, image.numpy())
    return interleaved_latency(calls, rounds)


def apart(network: nn.Module, image: torch.Tensor) -> None:
    with branch_by_branch(network):
        network(image)


def autocast(network: nn.Module, image: torch.Tensor) -> None:
    with torch.autocast('cpu', torch.bfloat16):
        network(image)


if __name__ == '__main__':
    run_script(main)
