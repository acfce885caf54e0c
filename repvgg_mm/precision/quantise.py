"""Post-training quantisation to int8 by NNCF, judged by the metric of the engine itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
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
from .layer_noise import CONVOLUTIONS, LayerNoise, biased_outputs, convolutions_of, layer_table, measure_layers
from .metric import ROUNDING, headline, validation_config

NOISE_IMAGES = 8  # of the calibration images, for ranges and signal to noise of each layer
ATTEMPTS = ((False, 0), (True, 0), (False, 1 / 8), (False, 1 / 4))  # equalised; share of convolutions left in float32
NO_DATA = ('Parameter', 'Constant', 'Result')  # nodes that compute nothing
Progress = Callable[[str], None]


def quantise_engine(
    cfg: Config,
    path: Path,
    content: bytes,
    description: Description,
    *,
    calib_images: int,
    max_drop: float,
    progress: Progress,
) -> Description:
    """Replace the float32 OpenVINO engine at `path` by one in int8 that keeps the metric on the validation set.

    Where the metric falls by more than `max_drop` points, channels are equalised (`equalise`); if that is not
    enough, an eighth of the convolutions is left in float32 instead, those that add most noise, then a quarter.

    Args:
        content: the ONNX graph that the engine was made of.
        description: of the engine in float32.
        max_drop: points of mIoU, or of mAP x 100.

    Returns:
        The description of the engine in int8, with what was found under `quantisation`.

    Raises:
        UserError: there is no data, the images do not fit the engine, or the metric is not kept.
    """
    nncf = optional('nncf')
    engine = Engine(path)
    progress('Preparing training images')
    images = calibration_images(cfg, engine, calib_images)

    progress('Measuring the engine in float32 on the validation set')
    cfg = validation_config(cfg)
    name, expected = headline(evaluate(cfg, engine))

    network = read_openvino(content)
    layers, tried = [], []
    for equalised, share in ATTEMPTS:
        kept = noisiest(layers, share)
        progress(f'Quantising on {len(images)} images{describe_attempt(equalised, kept)}')
        found = _write_quantised(path, description, network, images, equalised, kept)
        layers = layers or found  # noise is ranked by the first attempt

        progress('Measuring the engine in int8 on the validation set')
        _, metric = headline(evaluate(cfg, Engine(path)))
        tried.append(Attempt(equalised, kept, metric))
        if expected - metric <= max_drop + ROUNDING:
            break
    else:
        attempts = [f'{attempt.metric:.2f}{describe_attempt(attempt.equalised, attempt.float32)}' for attempt in tried]
        raise UserError(
            f'An int8 engine may lose {max_drop:g} points of {name} (--max-drop), and this one reached '
            f'{"; ".join(attempts)}; instead of {expected:.2f}. Nothing was written: try more --calib-images, '
            'use --precision bf16 or fp32, or allow more with --max-drop.')

    before = {layer.name: layer for layer in layers} if len(tried) > 1 else None
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
    versions = description.versions | dict(nncf=nncf.__version__)
    return write_description(path, replace(description, versions=versions, quantisation=quantisation))


def _write_quantised(
    path: Path,
    description: Description,
    network: object,
    images: Sequence[np.ndarray],
    equalised: bool,
    kept: Collection[str],
) -> list[LayerNoise]:
    """Write one attempt over the engine at `path`; returns what quantising did to each convolution."""
    source = equalise(network)[0] if equalised else network
    quantised = quantise(source, images, kept)
    every = -(-len(images) // NOISE_IMAGES)
    found = measure_layers(source, quantised, images[::every])

    save_openvino(quantised, path)
    write_description(path, description)
    return found


def quantise(network: object, images: Sequence[np.ndarray], kept: Collection[str] = ()) -> object:
    """An openvino.Model in int8 by NNCF's defaults: weights by output channel, activations by tensor.

    What comes after the last convolutions, such as the decoding of boxes, stays in float32, and so do the
    convolutions named in `kept`. `network` is not changed.
    """
    nncf = optional('nncf')
    nncf.set_log_level(logging.ERROR)

    convolutions = convolutions_of(network)
    names = after_last_convolutions(network)
    names += [convolutions[name].get_friendly_name() for name in kept]
    return nncf.quantize(
        network,
        nncf.Dataset(images),
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=names, validate=False))


def describe_attempt(equalised: bool, float32: Sequence[str]) -> str:
    """What was done beside NNCF's defaults, to follow other words."""
    words = ', channels equalised' if equalised else ''
    if float32:
        words += f', {len(float32)} convolutions in float32'
    return words


def after_last_convolutions(network: object) -> list[str]:
    """Nodes of an openvino.Model whose values no convolution uses, those convolutions and their biases excepted."""
    nodes = network.get_ordered_ops()
    used = {output.get_node().get_name() for output in biased_outputs(network).values()}

    before = set()
    for node in reversed(nodes):
        is_read = any(reader.get_name() in before for reader in _readers_of(node))
        if is_read or node.get_type_name() in CONVOLUTIONS:
            before.add(node.get_name())
    used |= before

    return [
        node.get_friendly_name() for node in nodes
        if node.get_name() not in used and node.get_type_name() not in NO_DATA]


def noisiest(layers: Sequence[LayerNoise], share: float) -> list[str]:
    """Names of that share of the layers, rounded up, that add most noise of their own."""
    ranked = sorted(layers, key=lambda layer: layer.own_snr_db)
    count = math.ceil(share * len(layers))
    return [layer.name for layer in ranked[:count]]


def _readers_of(node: object) -> list:
    readers = []
    for output in node.outputs():
        readers += [target.get_node() for target in output.get_target_inputs()]
    return readers


def _finite(layer: LayerNoise) -> dict:
    """For JSON, which has no infinity."""
    content = asdict(layer)
    for name, value in content.items():
        if isinstance(value, float) and not math.isfinite(value):
            content[name] = None
    return content
