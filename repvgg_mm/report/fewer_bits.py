"""What fewer bits cost an engine, for its page: the metric, the noise of each layer, what was tried."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from mmengine.config import Config

from ..engine.description import Attempt, Half, Quantisation
from ..errors import UserError
from ..openmmlab.data import validation_set
from ..precision.quantise import describe_attempt
from .charts import noise_chart
from .page import WIDE_REM, Chart, Section, Table, Verdict

LONGEST_OPEN_TABLE = 12  # rows
# Of `LayerNoise`: what a reader is shown for each.
LAYER_COLUMNS = {
    'name': 'layer',
    'largest_weight': 'largest weight',
    'weight_spread': 'over median channel',
    'low': 'output from',
    'high': 'to',
    'snr_db': 'signal to noise, dB',
    'own_snr_db': 'own noise, dB',
}


def quantisation_verdict(found: Quantisation, precision: str) -> Verdict:
    return Verdict(
        f'{found.int8:.2f}',
        f'{found.metric} of the {precision} engine',
        f'{found.float32:.2f} in float32; {drop_text(found)}, on the validation set',
        good=found.drop <= found.max_drop)


def half_verdict(found: Half) -> Verdict:
    kept = f'; {len(found.float32)} operators stay in float32' if found.float32 else ''
    return Verdict(
        f'{found.metric_half:.2f}',
        f'{found.metric} of the fp16 engine',
        f'{found.metric_float32:.2f} in float32; {change_of_metric(found.drop)}, on the validation set{kept}')


def drop_text(found: Quantisation) -> str:
    """Such as 'a drop of 0.27 points, at most 1 may be lost'."""
    return f'{change_of_metric(found.drop)}, at most {found.max_drop:g} may be lost'


def change_of_metric(drop: float) -> str:
    """Such as 'a drop of 0.27 points'."""
    return f'a drop of {drop:.2f} points' if drop >= 0 else f'a gain of {-drop:.2f} points'


def quantisation_section(found: Quantisation, precision: str, cfg: Config) -> Section:
    """What it cost in words, the noise of each layer, and what was tried."""
    text = (
        f'{found.metric} is {found.float32:.2f} in float32 and {found.int8:.2f} in {precision}: {drop_text(found)}. It '
        f'was measured on {_images_of_validation(cfg)}; ranges come from {found.calib_images} calibration images of '
        'the training set.')

    kept = set(found.tried[-1].float32) if found.tried else set()
    parts = _noise_charts(found.layers, kept)
    if found.layers:
        parts.append(_layer_table(found.layers, kept))
    if found.tried:
        parts.append(_attempt_table(found.tried, found.metric))
    return Section(f'What {precision} costs', text, parts)


def half_section(found: Half, cfg: Config) -> Section:
    """What it cost in words, and what stays in float32."""
    if found.metric is None:
        words = 'The metric was not measured: the config has no validation data here.'
    else:
        words = (
            f'{found.metric} is {found.metric_float32:.2f} in float32 and {found.metric_half:.2f} in fp16: '
            f'{change_of_metric(found.drop)}, measured on {_images_of_validation(cfg)}.')

    images = 'calibration images of the training set' if found.of_training_set else 'random images'
    seen = f'numbers come near the end of the range of float16, 65504, on {found.images} {images}'
    if not found.float32:
        return Section('What fp16 costs', f'{words} No {seen}: every operator is in float16.')

    table = Table(
        ('operator',), [(name,) for name in found.float32], f'In float32 ({len(found.float32)})',
        folded=len(found.float32) > LONGEST_OPEN_TABLE)
    return Section('What fp16 costs', f'{words} Operators stay in float32 where {seen}.', [table])


def _noise_charts(layers: Sequence[Mapping], kept: Collection[str]) -> list[Chart]:
    """One, or none where no layer's noise is known."""
    noise = {}
    for layer in layers:
        snr = layer.get('snr_db')
        if snr is not None:
            noise[layer['name']] = (snr, layer['name'] in kept)
    if not noise:
        return []

    worst = min(noise, key=lambda name: noise[name][0])
    caption = (
        f'Noisiest is {worst} with {noise[worst][0]:.1f} dB. Signal to noise of each convolution\'s output, the noise '
        'of all before it included: 20 dB are noise of a tenth of the signal.')
    if kept:
        caption += ' Orange stays in float32.'
    return [Chart(noise_chart(noise, 'Noise of each layer'), caption, WIDE_REM)]


def _layer_table(layers: Sequence[Mapping], kept: Collection[str]) -> Table:
    rows = []
    for layer in layers:
        name, *values = (layer.get(key) for key in LAYER_COLUMNS)
        place = f'{name} (in float32)' if name in kept else str(name)
        rows.append((place, *map(_figure, values)))
    return Table(
        list(LAYER_COLUMNS.values()), rows, f'Ranges and noise of each layer as a table ({len(rows)})', folded=True)


def _attempt_table(tried: Sequence[Attempt], metric: str) -> Table:
    rows = []
    for attempt in tried:
        words = describe_attempt(attempt).removeprefix(', ')
        rows.append((words or 'every convolution, as it is', f'{attempt.metric:.2f}'))
    return Table(('attempt', metric), rows, 'What was tried, in this order. The last one was written.')


def _images_of_validation(cfg: Config) -> str:
    try:
        return f'{len(validation_set(cfg)):,} validation images'
    except UserError:
        return 'the validation set'


def _figure(value: float | None) -> str:
    """Nothing for what is not known, and for a signal without noise."""
    if value is None or not math.isfinite(value):
        return ''
    return f'{value:.4g}'
