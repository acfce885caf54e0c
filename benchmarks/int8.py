"""Ways to quantise one trained model: metric on the validation set, signal to noise of the outputs, latency.

    python benchmarks/int8.py CONFIG CHECKPOINT --shape H W --work-dir DIR             # engines and their metrics
    python benchmarks/int8.py CONFIG CHECKPOINT --shape H W --work-dir DIR --latency   # times of the engines in DIR

Run the second one with nothing beside it. Engines are statically shaped, one image, preprocessing outside.
"""

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from mmengine.config import Config

from repvgg_mm.__main__ import run_script
from repvgg_mm.block import branch_by_branch
from repvgg_mm.commands.arguments import add_checkpoint, add_config
from repvgg_mm.commands.setup import load_config
from repvgg_mm.convert.measure import cpu_name, interleaved_latency
from repvgg_mm.convert.raw_outputs import raw_outputs
from repvgg_mm.deploy.checkpoint import Checkpoint, load_model
from repvgg_mm.engine.description import write_description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.engine.openvino_file import PROPERTIES, read_openvino, save_openvino
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import prepare
from repvgg_mm.export.target import Target
from repvgg_mm.precision.calibration import calibration_images
from repvgg_mm.precision.equalise import equalise
from repvgg_mm.precision.layer_noise import convolutions_of, measure_layers, signal_to_noise
from repvgg_mm.precision.metric import headline, validation_config
from repvgg_mm.precision.quantise import after_last_convolutions, noisiest, quantise

PRESETS = nncf.QuantizationPreset


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('--latency', action='store_true')
    args = parser.parse_args()
    cfg = load_config(args)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    print(f'{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, openvino '
          f'{openvino.__version__}, nncf {nncf.__version__}')
    if args.latency:
        measure_latency(cfg, checkpoint, args.shape, args.folder, args.rounds)
    else:
        measure_metrics(cfg, checkpoint, args.shape, args.folder)


def parser_of(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--shape', type=int, nargs=2, required=True, metavar=('H', 'W'))
    parser.add_argument('--work-dir', dest='folder', type=Path, required=True)
    parser.add_argument('--rounds', type=int, default=31)
    return parser


def measure_metrics(cfg: Config, checkpoint: Checkpoint, shape: list[int], folder: Path) -> None:
    prepared = prepare(cfg, checkpoint, Target('openvino', shape=shape))
    engines = {}
    for name, precision in (('float32', 'fp32'), ('bf16', 'bf16')):
        (folder / name).mkdir(parents=True, exist_ok=True)
        described = replace(prepared.description, precision=precision)
        path, _ = write_engine(prepared.graph, described, folder / name)
        engines[name] = Engine(path)

    reference = engines['float32']
    images = calibration_images(cfg, reference, 100)
    network = read_openvino(prepared.graph.SerializeToString())
    equal, names = equalise(network)
    print(f'{len(names)} of {len(convolutions_of(network))} convolutions equalised')

    tests = validation_config(cfg)
    show('training form, PyTorch', evaluate(tests, checkpoint))
    for name, engine in engines.items():
        show(name, evaluate(tests, engine), noise(reference, engine, images[::6]))

    def default(images: list[np.ndarray], **options: object) -> openvino.Model:
        return nncf.quantize(network, nncf.Dataset(images), subset_size=len(images), **options)

    int8 = replace(prepared.description, openvino_properties=PROPERTIES['int8'])

    def measure(name: str, way: Callable[[], openvino.Model]) -> openvino.Model:
        start = time.perf_counter()
        made = way()
        seconds = time.perf_counter() - start

        path = folder / '_'.join(re.findall(r'\w+', name)) / 'engine.xml'
        path.parent.mkdir(exist_ok=True)
        save_openvino(made, path)
        write_description(path, int8)
        engine = Engine(path)
        show(name, evaluate(tests, engine), noise(reference, engine, images[::6]), seconds)
        return made

    after = nncf.IgnoredScope(names=after_last_convolutions(network), validate=False)
    measure('NNCF default', partial(default, images))
    made = measure('after the last convolutions in float32 (the tool)', partial(quantise, network, images))
    layers = measure_layers(network, made, images[::12])
    eighth, quarter = noisiest(layers, 1 / 8), noisiest(layers, 1 / 4)

    measure('the tool, 10 images', partial(quantise, network, images[::10]))
    measure('the tool, 25 images', partial(quantise, network, images[::4]))
    measure('the tool, mixed preset', partial(default, images, preset=PRESETS.MIXED, ignored_scope=after))
    measure('the tool, equalised', partial(quantise, equal, images))
    measure('the tool, an eighth in float32', partial(quantise, network, images, eighth))
    measure('the tool, a quarter in float32', partial(quantise, network, images, quarter))
    measure('the tool, equalised, an eighth in float32', partial(quantise, equal, images, eighth))


def noise(reference: Engine, engine: Engine, images: list[np.ndarray]) -> dict[str, float]:
    """Signal to noise of each output in dB."""
    sums = {name: np.zeros(2) for name in reference.description.outputs}
    for image in images:
        expected, found = reference(image), engine(image)
        for name, values in expected.items():
            values = values.astype(np.float64)
            sums[name] += (values ** 2).sum(), ((found[name] - values) ** 2).sum()
    return {name: signal_to_noise(*both) for name, both in sums.items()}


def show(name: str, metrics: dict, decibels: dict | None = None, seconds: float | None = None) -> None:
    metric, points = headline(metrics)
    parts = [f'{output} {value:.1f} dB' for output, value in (decibels or {}).items()]
    took = '' if seconds is None else f'{seconds:.0f} s'
    print(f'| {name} | {metric} {points:.2f} | {", ".join(parts)} | {took} |', flush=True)


def measure_latency(cfg: Config, checkpoint: Checkpoint, shape: list[int], folder: Path, rounds: int) -> None:
    model = load_model(cfg, checkpoint)
    inputs = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    image = inputs.numpy()

    def branches() -> None:
        with torch.no_grad(), branch_by_branch(model):
            raw_outputs(model, inputs)

    calls = {'PyTorch, training form, branch by branch': branches,
             'PyTorch, training form': torch.no_grad()(partial(raw_outputs, model, inputs))}
    for path in sorted(folder.glob('*/engine.xml')):
        calls[path.parent.name] = partial(Engine(path), image)
    times = interleaved_latency(calls, rounds)
    first = times['PyTorch, training form'].median_ms
    for name, (median, lower, upper) in times.items():
        print(f'| {name} | {median:.2f} ({lower:.2f} to {upper:.2f}) | {first / median:.1f}x |')


if __name__ == '__main__':
    run_script(main)
