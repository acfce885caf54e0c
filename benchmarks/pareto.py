"""Accuracy over latency: RepVGG beside ResNet and MobileNetV2, trained from scratch and measured alike.

    python benchmarks/pareto.py train [--heads HEAD ...] [--backbones NAME ...] [--seeds 0 1 2] [--steps N]
    python benchmarks/pareto.py int8 [--heads HEAD ...] [--backbones NAME ...] [--seeds 0] [--max-drop 0.3]
    python benchmarks/pareto.py latency [--heads HEAD ...] [--rounds 21]
    python benchmarks/pareto.py show

Everything goes on where it stopped: what is in --results already is not made again, and a training that was stopped is
resumed. `latency` alone is measured anew, and needs a machine with nothing else to do. `show` prints the tables and
draws the plot; with `--results benchmarks/pareto.json` those of docs/backbones.md. The data is CamVid and BCCD
(docs/train.md, "Datasets"), in the folder that REPVGG_MM_DATA names.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from protocol.backbones import BACKBONES, HEADS, config_of
from protocol.metrics import points
from protocol.records import FORMS, Key, Records
from protocol.tables import table_of, verdict_of
from torch import nn

from repvgg_mm import RepVGG, register, whole_model_convert
from repvgg_mm.__main__ import run_script
from repvgg_mm.benchmark.benchmark import PAUSE
from repvgg_mm.convert.measure import count_macs, count_parameters, cpu_name, interleaved_latency
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.engine.description import read_description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.errors import UserError
from repvgg_mm.export.export import export, shape_of_tests
from repvgg_mm.export.networks import network_of
from repvgg_mm.export.target import Target
from repvgg_mm.openmmlab.config import import_toolbox

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', choices=STEPS)
    parser.add_argument('--heads', nargs='+', choices=HEADS, default=HEADS, metavar='HEAD')
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, default=list(BACKBONES), metavar='NAME')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--steps', type=int, help='of each training, instead of those of the head')
    parser.add_argument('--max-drop', type=float, default=Target.max_drop, help='points that int8 may lose')
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--results', type=Path, default=Path('work_dirs/pareto/results.json'), metavar='FILE')
    parser.add_argument('--work-dirs', type=Path, default=Path('work_dirs/pareto'), metavar='DIR')
    parser.add_argument('--plot', type=Path, default=Path('work_dirs/pareto/pareto.png'), metavar='FILE')
    args = parser.parse_args()

    register()
    STEPS[args.step](args, Records(args.results))


def train(args: argparse.Namespace, records: Records) -> None:
    """Train what was not trained, and measure it on the validation set."""
    for seed in args.seeds:
        for head in args.heads:
            for backbone in args.backbones:
                _train(Key(head, backbone, seed), args, records)


def _train(key: Key, args: argparse.Namespace, records: Records) -> None:
    cfg = config_of(*key, args.steps)
    steps = cfg.train_cfg.max_iters
    known = records.runs.get(key)
    if known and known['steps'] != steps:
        raise UserError(
            f'A table has trainings of as many steps, and {records.path} has {key.backbone} with {known["steps"]}, now '
            f'{steps} are asked for. Give another file with --results.')
    if known:
        print(f'{key.folder(steps)}: already in {records.path}', flush=True)
        return

    folder = args.work_dirs / key.folder(steps)
    last = folder / f'iter_{steps}.pth'
    if not last.exists():
        folder.mkdir(parents=True, exist_ok=True)
        cfg.dump(folder / 'config.py')
        resume = ['--resume'] if (folder / 'last_checkpoint').exists() else []
        print(f'{key.folder(steps)}: training', flush=True)
        subprocess.run([
            sys.executable, ROOT / 'tools' / 'train.py', folder / 'config.py', '--work-dir', folder,
            '--amp', '--amp-dtype', 'bfloat16', *resume], check=True)

    checkpoint = read(cfg, last)
    metric, classes = points(cfg, checkpoint)
    network = network_of(folded(load_model(cfg, checkpoint)))
    macs = count_macs(network, torch.randn(1, 3, *size_of(cfg, network.model)))
    records.add(
        key, steps=steps, minutes=minutes_of(folder, steps), metric=metric, classes=classes,
        parameters=count_parameters(network), macs=macs)
    print(f'{key.folder(steps)}: {metric:.2f}', flush=True)


def int8(args: argparse.Namespace, records: Records) -> None:
    """Export what was trained, in float32 and int8, and measure both on the validation set."""
    for key, run in list(records.runs.items()):
        chosen = key.head in args.heads and key.backbone in args.backbones and key.seed in args.seeds
        if chosen and FORMS[2] not in run:
            cfg, checkpoint = trained(key, run, args)
            folder = args.work_dirs / key.folder(run['steps'])
            exported(cfg, checkpoint, folder, 'fp32')
            try:
                engine = exported(cfg, checkpoint, folder, 'int8', args.max_drop)
            except UserError as error:  # such as no attempt that keeps the metric: the others go on
                print(f'{folder}: {error}', flush=True)
                continue

            judged = read_description(engine.path).quantisation
            tried = [round(attempt.metric, 2) for attempt in judged.tried]
            records.add(key, **{FORMS[1]: round(judged.float32, 2), FORMS[2]: round(judged.int8, 2)}, tried=tried)


def latency(args: argparse.Namespace, records: Records) -> None:
    """Time the deploy form and both engines of every backbone of a head, those of seed 0, interleaved."""
    for head in args.heads:
        calls = {}
        for key, run in records.runs.items():
            if key.head == head and key.seed == 0:
                calls |= _calls_of(key, run, args)
        if not calls:
            continue

        found = interleaved_latency(calls, args.rounds, pause=PAUSE)
        machine = (
            f'torch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} threads, {args.rounds} rounds with a '
            f'pause of {PAUSE:g} s before each call')
        times: dict[str, dict] = {}
        for (backbone, form), measured in found.items():
            times.setdefault(backbone, {})[form] = [round(value, 2) for value in measured]
        records.add_latency(head, machine, times)


def _calls_of(key: Key, run: dict, args: argparse.Namespace) -> dict:
    cfg, checkpoint = trained(key, run, args)
    network = network_of(folded(load_model(cfg, checkpoint)))
    image = torch.randn(1, 3, *size_of(cfg, network.model))
    calls = {(key.backbone, FORMS[0]): partial(network, image)}
    for form, precision in zip(FORMS[1:], ('fp32', 'int8')):
        if form in run:
            engine = exported(cfg, checkpoint, args.work_dirs / key.folder(run['steps']), precision)
            calls[key.backbone, form] = partial(engine, image.numpy())
    return calls


def show(args: argparse.Namespace, records: Records) -> None:
    """Print the tables and what follows from them, and draw the plot."""
    from protocol.plot import draw
    for head in args.heads:
        texts = [table_of(records, head), verdict_of(records, head)]
        print(*filter(None, texts), sep='\n\n', end='\n\n')
    if records.latency:
        draw(records, args.plot)
        print(f'Wrote {args.plot}')
    else:
        print('The plot needs times: run `latency` first.')


STEPS = dict(train=train, int8=int8, latency=latency, show=show)


def trained(key: Key, run: dict, args: argparse.Namespace) -> tuple[Config, Checkpoint]:
    """The config and the last checkpoint of a training."""
    cfg = config_of(*key, run['steps'])
    return cfg, read(cfg, args.work_dirs / key.folder(run['steps']) / f'iter_{run["steps"]}.pth')


def read(cfg: Config, path: Path) -> Checkpoint:
    """A checkpoint whose net can be exported: one without RepVGG counts as a deploy form, having nothing to fuse."""
    import_toolbox(cfg)
    checkpoint = Checkpoint.read(path)
    return checkpoint if checkpoint.form else dataclasses.replace(checkpoint, form='deploy')


def folded(model: nn.Module) -> nn.Module:
    """The deploy form with every norm folded into its convolution, heads included; a ResNet's likewise.

    The auxiliary head, which is for training alone, is left out.
    """
    model.auxiliary_head = None
    if isinstance(model.backbone, RepVGG):
        model = whole_model_convert(model)
    return fuse_conv_bn(model).eval()


def exported(
    cfg: Config, checkpoint: Checkpoint, folder: Path, precision: str, max_drop: float = Target.max_drop
) -> Engine:
    """The OpenVINO engine of a checkpoint, made unless it is there."""
    path = folder / precision / 'engine.xml'
    if not path.exists() or read_description(path).source_sha256 != checkpoint.sha256:
        target = Target('openvino', precision, max_drop=max_drop)
        export(cfg, checkpoint, path.parent, target, overwrite=True)
    return Engine(path, threads=torch.get_num_threads())


def size_of(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Height and width of what the network is given in a test."""
    return shape_of_tests(cfg, model, preprocess=False)


def minutes_of(folder: Path, steps: int) -> float:
    """What the steps of a training took, at the median time of one."""
    times = []
    for log in sorted(folder.glob('*/vis_data/scalars.json')):
        lines = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
        times += [line['time'] for line in lines if 'loss' in line]
    seconds = statistics.median(times) if times else 0.0  # no step was logged
    return round(steps * seconds / 60, 1)


if __name__ == '__main__':
    run_script(main)
