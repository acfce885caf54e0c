"""Ways to quantise one trained model: metric on the validation set, signal to noise of the outputs, latency.

    python benchmarks/int8.py CONFIG CHECKPOINT --shape H W --work-dir DIR             # engines and their metrics
    python benchmarks/int8.py CONFIG CHECKPOINT --shape H W --work-dir DIR --latency   # times of the engines in DIR

Run the second one with nothing beside it. Engines are statically shaped, one image, preprocessing outside.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterable
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
from repvgg_mm.engine.description import Description, write_description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.engine.openvino_file import PROPERTIES, read_openvino, save_openvino
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import prepare
from repvgg_mm.export.target import Target
from repvgg_mm.precision.calibration import calibration_images
from repvgg_mm.precision.equalise import equalise
from repvgg_mm.precision.graph import WEIGHTS, arrays_of, convolutions_of
from repvgg_mm.precision.layer_noise import measure_layers, signal_to_noise
from repvgg_mm.precision.metric import headline, validation_config
from repvgg_mm.precision.quantise import QUANTISERS, SHARES, noisiest
from repvgg_mm.precision.rounding import LEVELS, round_weights

SUFFIXES = dict(onnx='.onnx', openvino='.xml')
NOT_CONVOLUTIONS = [  # types of OpenVINO's operators that NNCF would quantise
    'Add', 'Multiply', 'Subtract', 'Divide', 'AvgPool', 'MaxPool', 'Interpolate', 'MatMul', 'ReduceMean', 'Concat',
    'Sigmoid', 'Exp', 'Clamp', 'MVN']


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('--latency', action='store_true')
    parser.add_argument('--accuracy-control', action='store_true', help="NNCF's own loop too, which takes long")
    args = parser.parse_args()
    cfg = load_config(args)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    print(f'{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, openvino '
          f'{openvino.__version__}, nncf {nncf.__version__}')
    if args.latency:
        measure_latency(cfg, checkpoint, args.shape, args.folder, args.rounds)
    else:
        measure_metrics(cfg, checkpoint, args)


def parser_of(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--shape', type=int, nargs=2, required=True, metavar=('H', 'W'))
    parser.add_argument('--work-dir', dest='folder', type=Path, required=True)
    parser.add_argument('--rounds', type=int, default=31)
    return parser


def measure_metrics(cfg: Config, checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    folder = args.folder
    prepared = prepare(cfg, checkpoint, Target('openvino', shape=args.shape))
    engines = {}
    for name, precision in (('float32', 'fp32'), ('bf16', 'bf16')):
        (folder / name).mkdir(parents=True, exist_ok=True)
        described = replace(prepared.description, precision=precision)
        path, _ = write_engine(prepared.graph, described, folder / name)
        engines[name] = Engine(path)

    reference = engines['float32']
    images = calibration_images(cfg, reference, 100)
    graph = prepared.graph
    equal, names = equalise(graph)
    print(f'{len(names)} of {len(convolutions_of(graph))} convolutions equalised')

    tests = validation_config(cfg)
    show('training form, PyTorch', evaluate(tests, checkpoint))
    for name, engine in engines.items():
        show(name, evaluate(tests, engine), noise(reference, engine, images[::6]))

    described = replace(prepared.description, precision='int8')

    def measure(name: str, engine: str, way: Callable[[], object]) -> object:
        start = time.perf_counter()
        made = way()
        seconds = time.perf_counter() - start
        path = folder / '_'.join(re.findall(r'\w+', f'{engine} {name}')) / ('engine' + SUFFIXES[engine])
        path.parent.mkdir(exist_ok=True)
        write(path, made, replace(described, engine=engine))
        found = Engine(path)
        show(f'{engine}: {name}', evaluate(tests, found), noise(reference, found, images[::6]), seconds)
        return made

    for name, share in rounded_to_zero(graph).items():
        print(f'{name}: {share:.0%} of the weights are nearer to 0 than to a step')

    start = time.perf_counter()
    rounded = round_weights(graph, images)
    print(f'Weights rounded by GPTQ in {time.perf_counter() - start:.0f} s')
    both = round_weights(equal, images)
    for engine, quantise in QUANTISERS.items():
        measure('plain', engine, partial(quantise, graph, images))
        measure('10 images', engine, partial(quantise, graph, images[::10]))
        measure('equalised', engine, partial(quantise, equal, images))
        made = measure('rounded', engine, partial(quantise, rounded, images))
        measure('rounded with 10 images', engine, partial(quantise, round_weights(graph, images[::10]), images))
        measure('equalised, rounded', engine, partial(quantise, both, images))
        layers = measure_layers(graph, made, images[::12])
        for share in SHARES:
            kept = noisiest(layers, share)
            source = round_weights(graph, images, kept)
            measure(f'rounded, {share} in float32', engine, partial(quantise, source, images, kept))

    network = read_openvino(graph.SerializeToString())
    ways = dict(subset_size=len(images), ignored_scope=nncf.IgnoredScope(types=NOT_CONVOLUTIONS, validate=False))
    aligned = nncf.AdvancedQuantizationParameters(disable_channel_alignment=False)
    data = nncf.Dataset(images)
    measure('NNCF, of OpenVINO', 'openvino', partial(nncf.quantize, network, data, **ways))
    try:
        measure('NNCF, channels aligned', 'openvino', partial(
            nncf.quantize, network, data, advanced_parameters=aligned, **ways))
    except KeyError as error:  # of NNCF 3.4, on some graphs
        print(f'| openvino: NNCF, channels aligned | fails: KeyError({error}) | | |')
    if args.accuracy_control:
        def validate(
            compiled: openvino.CompiledModel, items: Iterable[np.ndarray]
        ) -> tuple[float, list[list[np.ndarray]]]:
            """The metric, and the outputs for each item, by which NNCF ranks layers."""
            found = InMemory(reference, compiled)
            outputs = [list(found(image).values()) for image in items]
            return headline(evaluate(tests, found))[1], outputs

        measure('NNCF, accuracy control', 'openvino', partial(
            nncf.quantize_with_accuracy_control, network, data, nncf.Dataset(images[::5]), validate, max_drop=0.3,
            **ways))


def rounded_to_zero(graph: object) -> dict[str, float]:
    """Of each convolution, the share of weights that are smaller than half a step, max|w| / 127, of their channel."""
    shares = {}
    for name, conv in convolutions_of(graph).items():
        weights, = arrays_of(graph, [conv.input[WEIGHTS]]).values()
        magnitudes = np.abs(weights).reshape(len(weights), -1)
        step = magnitudes.max(1, keepdims=True) / LEVELS
        shares[name] = float((magnitudes < step / 2).mean())
    return shares


class InMemory(Engine):
    """A compiled network in the place of an engine of the same outputs."""

    def __init__(self, engine: Engine, compiled: openvino.CompiledModel) -> None:
        self.path = engine.path
        self.description = engine.description
        self.compiled = compiled

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        found = self.compiled(np.ascontiguousarray(images))
        return {name: found[name] for name in self.description.outputs}


def write(path: Path, model: object, description: Description) -> None:
    """An onnx.ModelProto or an openvino.Model as the engine at `path`."""
    if path.suffix == '.onnx':
        path.write_bytes(model.SerializeToString())
    else:
        network = model if isinstance(model, openvino.Model) else read_openvino(model.SerializeToString())
        save_openvino(network, path)
        description = replace(description, openvino_properties=PROPERTIES['int8'])
    write_description(path, description)


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
    for path in sorted([*folder.glob('*/engine.xml'), *folder.glob('*/engine.onnx')]):
        calls[path.parent.name] = partial(Engine(path), image)
    times = interleaved_latency(calls, rounds)
    first = times['PyTorch, training form'].median_ms
    for name, (median, lower, upper) in times.items():
        print(f'| {name} | {median:.2f} ({lower:.2f} to {upper:.2f}) | {first / median:.1f}x |')


if __name__ == '__main__':
    run_script(main)
