"""Post-training quantisation to int8 by NNCF, judged by the metric of the engine itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..engine.description import save_openvino, write_meta
from ..engine.engine import Engine, optional
from ..engine.evaluate import evaluate
from ..errors import UserError
from .calibration import calibration_images
from .equalise import equalise
from .layer_noise import CONVOLUTIONS, Layer, biased_outputs, convolutions_of, layer_table, measure_layers

NOISE_IMAGES = 8  # of the calibration images, for ranges and signal to noise of each layer
ATTEMPTS = ((False, 0), (True, 0), (False, 1 / 8), (False, 1 / 4))  # equalised; share of convolutions left in float32
METRICS = (('mIoU', 1), ('bbox_mAP', 100), ('mAP', 100))  # the last part of a metric's name, and its points
Progress = Callable[[str], None]


def quantise_engine(
    cfg: Config, path: Path, content: bytes, meta: dict, *, calib_images: int, max_drop: float, progress: Progress
) -> None:
    """Replace the float32 OpenVINO engine at `path` by one in int8 that keeps the metric on the validation set.

    Where the metric falls by more than `max_drop` points, channels are equalised (`equalise`); if that is not
    enough, an eighth of the convolutions is left in float32 instead, those that add most noise, then a quarter.
    What was found is in `meta['quantisation']`.

    Args:
        content: the ONNX graph that the engine was made of.
        meta: of the engine, changed.
        max_drop: points of mIoU, or of mAP x 100.

    Raises:
        UserError: there is no data, the images do not fit the engine, or the metric is not kept.
    """
    nncf, openvino = optional('nncf'), optional('openvino')
    engine = Engine(path)
    progress('Preparing training images')
    images = calibration_images(cfg, engine, calib_images)
    progress('Measuring the engine in float32 on the validation set')
    cfg = validation_config(cfg)
    name, expected = headline(evaluate(cfg, path))
    network = openvino.Core().read_model(content)
    layers, tried = [], []
    for equalised, share in ATTEMPTS:
        kept = noisiest(layers, share)
        tried.append(dict(equalised=equalised, float32=kept))
        progress(f'Quantising on {len(images)} images{describe(tried[-1])}')
        source = equalise(network)[0] if equalised else network
        quantised = quantise(source, images, kept)
        found = measure_layers(source, quantised, images[::-(-len(images) // NOISE_IMAGES)])
        layers = layers or found
        save_openvino(quantised, path)
        write_meta(path, meta)
        progress('Measuring the engine in int8 on the validation set')
        _, tried[-1]['metric'] = headline(evaluate(cfg, path))
        if expected - tried[-1]['metric'] <= max_drop + 1e-9:
            break
    else:
        attempts = '; '.join(f'{attempt["metric"]:.2f}{describe(attempt)}' for attempt in tried)
        raise UserError(
            f'An int8 engine may lose {max_drop:g} points of {name} (--max-drop), and this one reached {attempts}; '
            f'instead of {expected:.2f}. Nothing was written: try more --calib-images, use --precision bf16 or '
            'fp32, or allow more with --max-drop.')
    meta['versions']['nncf'] = nncf.__version__
    meta['quantisation'] = dict(
        calib_images=len(images), metric=name, float32=expected, int8=tried[-1]['metric'],
        drop=round(expected - tried[-1]['metric'], 4), max_drop=max_drop, tried=tried,
        layers=[_finite(layer) for layer in found])
    write_meta(path, meta)
    progress('Ranges and signal to noise of each convolution:\n' + layer_table(
        found, {layer.name: layer for layer in layers} if len(tried) > 1 else None))


def quantise(network: object, images: Sequence[np.ndarray], kept: Collection[str] = ()) -> object:
    """An openvino.Model in int8 by NNCF's defaults: weights by output channel, activations by tensor.

    What comes after the last convolutions, such as the decoding of boxes, stays in float32, and so do the
    convolutions named in `kept`. `network` is not changed.
    """
    nncf = optional('nncf')
    nncf.set_log_level(logging.ERROR)
    convolutions = convolutions_of(network)
    names = [*after_last_convolutions(network), *(convolutions[name].get_friendly_name() for name in kept)]
    return nncf.quantize(
        network, nncf.Dataset(images), subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=names, validate=False))


def describe(attempt: Mapping) -> str:
    """What was done beside NNCF's defaults, to follow other words."""
    kept = f', {len(attempt["float32"])} convolutions in float32' if attempt['float32'] else ''
    return (', channels equalised' if attempt['equalised'] else '') + kept


def after_last_convolutions(network: object) -> list[str]:
    """Nodes of an openvino.Model whose values no convolution uses, those convolutions and their biases excepted."""
    nodes = network.get_ordered_ops()
    biased = {output.get_node().get_name() for output in biased_outputs(network).values()}
    used = set()
    for node in reversed(nodes):
        readers = [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
        if any(reader.get_name() in used for reader in readers) or node.get_type_name() in CONVOLUTIONS:
            used.add(node.get_name())
    return [node.get_friendly_name() for node in nodes
            if node.get_name() not in used and node.get_name() not in biased
            and node.get_type_name() not in ('Parameter', 'Constant', 'Result')]


def noisiest(layers: Sequence[Layer], share: float) -> list[str]:
    """Names of that share of the layers, rounded up, that add most noise of their own."""
    ranked = sorted(layers, key=lambda layer: layer.own_snr_db)
    return [layer.name for layer in ranked[:math.ceil(share * len(layers))]]


def validation_config(cfg: Config) -> Config:
    """A copy whose test set is the validation set, and quiet."""
    cfg = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename)
    if cfg.get('val_dataloader'):
        cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, {}
    cfg.log_level = 'ERROR'
    return cfg


def headline(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The name of the metric by which an engine is judged, and its points: mIoU, or mAP x 100.

    Raises:
        UserError: it is neither.
    """
    for last, points in METRICS:
        for name, value in metrics.items():
            if name.rsplit('/', 1)[-1] == last:
                return name, points * value
    raise UserError(f'An int8 engine is judged by mIoU or mAP, and the val_evaluator of this config gives '
                    f'{", ".join(metrics) or "nothing"}. Add an IoUMetric or a CocoMetric.')


def _finite(layer: Layer) -> dict:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(layer).items()}
