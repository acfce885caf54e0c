"""Post-training quantisation to int8, judged by the metric of the engine itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..engine.description import Attempt, Description, Quantisation, write_description
from ..engine.engine import Engine, optional
from ..engine.evaluate import evaluate
from ..engine.openvino_file import read_openvino, save_openvino
from ..errors import UserError
from .calibration import calibration_images
from .equalise import equalise
from .graph import convolutions_of
from .layer_noise import LayerNoise, layer_table, measure_layers
from .metric import ROUNDING, headline, validation_config
from .qdq import check_qdq, quantise_for_cpu, quantise_symmetric
from .rounding import round_weights

NOISE_IMAGES = 8  # of the calibration images, for ranges and signal to noise of each layer
FIRST = 3  # attempts with all convolutions in int8
SHARES = (1 / 8, 1 / 4)  # of convolutions left in float32, in the attempts after these
QUANTISERS = dict(onnx=quantise_symmetric, openvino=quantise_for_cpu)  # by engine
PACKAGES = dict(onnx='onnxruntime', openvino='nncf')  # that quantise
Progress = Callable[[str], None]


def quantise_engine(
    cfg: Config,
    path: Path,
    model: object,
    description: Description,
    *,
    calib_images: int,
    max_drop: float,
    progress: Progress,
) -> Description:
    """Replace the float32 engine at `path` by one in int8 that keeps the metric on the validation set.

    Where the metric falls by more than `max_drop` points, it tries what `next_attempt` gives.

    Args:
        model: the onnx.ModelProto that the engine was made of; it is not changed.
        description: of the engine in float32.
        max_drop: points of mIoU, or of mAP x 100.

    Returns:
        The description of the engine in int8, with what was found under `quantisation`.

    Raises:
        UserError: there is no data, the images do not fit the engine, or the metric is not kept.
    """
    quantiser = optional(PACKAGES[description.engine])
    engine = Engine(path)
    progress('Preparing training images')
    images = calibration_images(cfg, engine, calib_images)

    progress('Measuring the engine in float32 on the validation set')
    cfg = validation_config(cfg)
    name, expected = headline(evaluate(cfg, engine))

    tried, layers = [], []
    for _ in range(FIRST + len(SHARES)):
        attempt = next_attempt(tried, layers)
        progress(f'Quantising on {len(images)} images{describe_attempt(attempt)}')
        quantised, found = _quantise(model, images, attempt, description.engine, progress)
        _write(path, quantised)
        write_description(path, description)
        layers.append(found)

        progress('Measuring the engine in int8 on the validation set')
        _, metric = headline(evaluate(cfg, Engine(path)))
        progress(f'{name}: {metric:.2f}, and {expected:.2f} in float32')
        tried.append(replace(attempt, metric=metric))
        if expected - metric <= max_drop + ROUNDING:
            break
    else:
        attempts = [f'{attempt.metric:.2f}{describe_attempt(attempt)}' for attempt in tried]
        raise UserError(
            f'An int8 engine may lose {max_drop:g} points of {name} (--max-drop), and this one reached '
            f'{"; ".join(attempts)}; instead of {expected:.2f}. Nothing was written: try more --calib-images, '
            'use another --precision, or allow more with --max-drop.')

    before = {layer.name: layer for layer in layers[0]} if len(tried) > 1 else None
    progress('Ranges and signal to noise of each convolution:\n' + layer_table(found, before))

    quantisation = Quantisation(
        calib_images=len(images),
        metric=name,
        float32=expected,
        int8=metric,
        drop=round(expected - metric, 4),
        max_drop=max_drop,
        tried=tried,
        layers=[_finite(layer) for layer in found])
    versions = description.versions | {quantiser.__name__: quantiser.__version__}
    return write_description(path, replace(description, versions=versions, quantisation=quantisation))


def next_attempt(tried: Sequence[Attempt], layers: Sequence[Sequence[LayerNoise]]) -> Attempt:
    """What to do after the attempts `tried` with their `layers`.

    Plain quantisation; weights rounded by GPTQ (`round_weights`); channels equalised before that (`equalise`); the
    better of these two with an eighth of the convolutions in float32, those that add most noise; the same with a
    quarter.
    """
    if len(tried) < FIRST:
        return Attempt(equalised=len(tried) == 2, float32=[], metric=None, rounded=len(tried) >= 1)

    _, rounded, equalised = tried[:FIRST]
    better = equalised.metric > rounded.metric
    of_better = layers[2 if better else 1]
    kept = noisiest(of_better, SHARES[len(tried) - FIRST])
    return Attempt(equalised=better, float32=kept, metric=None, rounded=True)


def _quantise(
    model: object, images: Sequence[np.ndarray], attempt: Attempt, engine: str, progress: Progress
) -> tuple[object, list[LayerNoise]]:
    """One attempt, and what quantising did to each convolution."""
    kept = attempt.float32
    source = equalise(model)[0] if attempt.equalised else model
    rounded = round_weights(source, images, kept, progress) if attempt.rounded else source
    quantised = QUANTISERS[engine](rounded, images, kept)
    if engine == 'onnx':
        check_qdq(quantised, set(convolutions_of(model)) - set(kept))

    every = -(-len(images) // NOISE_IMAGES)
    return quantised, measure_layers(source, quantised, images[::every])


def _write(path: Path, model: object) -> None:
    """The engine of an onnx.ModelProto, over the one at `path`."""
    content = model.SerializeToString()
    if path.suffix == '.onnx':
        path.write_bytes(content)
    else:
        save_openvino(read_openvino(content), path)


def describe_attempt(attempt: Attempt) -> str:
    """What was done beside plain quantisation, to follow other words."""
    words = ', channels equalised' if attempt.equalised else ''
    if attempt.rounded:
        words += ', weights rounded by GPTQ'
    count = len(attempt.float32)
    if count:
        words += f', {count} convolution{"s" if count > 1 else ""} in float32'
    return words


def noisiest(layers: Sequence[LayerNoise], share: float) -> list[str]:
    """Names of that share of the layers, rounded up, that add most noise of their own."""
    ranked = sorted(layers, key=lambda layer: layer.own_snr_db)
    count = math.ceil(share * len(layers))
    return [layer.name for layer in ranked[:count]]


def _finite(layer: LayerNoise) -> dict:
    """For JSON, which has no infinity."""
    content = asdict(layer)
    for name, value in content.items():
        if isinstance(value, float) and not math.isfinite(value):
            content[name] = None
    return content
