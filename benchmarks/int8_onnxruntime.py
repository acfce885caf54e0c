"""ONNX Runtime's own quantiser on one trained model, beside its float32 engine: metric, signal to noise, latency.

    python benchmarks/int8_onnxruntime.py CONFIG CHECKPOINT --shape H W --work-dir DIR

What NNCF and OpenVINO make of the same model is measured by benchmarks/int8.py, in a process of its own.
"""

from functools import partial

import onnxruntime
import torch
from int8 import noise, parser_of, show
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from repvgg_mm.__main__ import run_script
from repvgg_mm.commands.setup import load_config
from repvgg_mm.convert.measure import cpu_name, interleaved_latency
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.description import write_description
from repvgg_mm.engine.engine import Engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import prepare
from repvgg_mm.export.target import Target
from repvgg_mm.precision.calibration import calibration_images
from repvgg_mm.precision.metric import validation_config

METHODS = {'MinMax': CalibrationMethod.MinMax, 'Percentile': CalibrationMethod.Percentile}


class Images(CalibrationDataReader):

    def __init__(self, images: list) -> None:
        self.images = iter(images)

    def get_next(self) -> dict | None:
        image = next(self.images, None)
        return None if image is None else dict(image=image)


def main() -> None:
    args = parser_of(__doc__).parse_args()
    cfg, folder = load_config(args), args.folder
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    threads = torch.get_num_threads()
    print(f'{cpu_name()}, {threads} threads, onnxruntime {onnxruntime.__version__}')

    prepared = prepare(cfg, checkpoint, Target('onnx', shape=args.shape))
    (folder / 'float32').mkdir(parents=True, exist_ok=True)
    path, _ = write_engine(prepared.graph, prepared.description, folder / 'float32')
    reference = Engine(path, threads=threads)
    images = calibration_images(cfg, reference, 100)
    tests = validation_config(cfg)
    show('float32', evaluate(tests, reference))

    engines = {'float32': reference}
    prepared_graph = folder / 'prepared.onnx'
    quant_pre_process(str(reference.path), str(prepared_graph), skip_symbolic_shape=True)
    for name, method in METHODS.items():
        path = folder / name / 'engine.onnx'
        path.parent.mkdir(exist_ok=True)
        quantize_static(
            prepared_graph,
            path,
            Images(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=method)
        write_description(path, prepared.description)
        engines[name] = Engine(path, threads=threads)
        metrics = evaluate(tests, engines[name])
        show(f"ONNX Runtime's quantiser, {name}", metrics, noise(reference, engines[name], images[::6]))

    times = interleaved_latency({name: partial(engine, images[0]) for name, engine in engines.items()}, args.rounds)
    for name, (median, lower, upper) in times.items():
        print(f'| {name} | {median:.2f} ({lower:.2f} to {upper:.2f}) | {times["float32"].median_ms / median:.1f}x |')


if __name__ == '__main__':
    run_script(main)
