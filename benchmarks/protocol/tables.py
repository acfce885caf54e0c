"""Tables of what was measured, and what follows at equal latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean

import numpy as np

from .backbones import BACKBONES
from .metrics import spread
from .records import FORMS, Records

METRIC = {'semfpn_camvid': 'mIoU', 'pspnet_camvid': 'mIoU', 'retinanet_bccd': 'bbox mAP'}
TITLE = {
    'semfpn_camvid': 'Semantic FPN at stride 4, CamVid 480x360',
    'pspnet_camvid': 'PSPNet at output stride 8, CamVid 240x180',
    'retinanet_bccd': 'RetinaNet, BCCD 320x240',
}
NEAR = 1.02  # times the latency of an end of a curve: as far as that is told apart from noise


def table_of(records: Records, head: str) -> str:
    """One row a backbone, seeds together; '' if none was trained."""
    if not any(key.head == head for key in records.runs):
        return ''
    metric = METRIC[head]
    lines = [
        f'{TITLE[head]}',
        '',
        f'| | seeds | {metric} | {metric}, int8 | ms, {" | ms, ".join(FORMS)} | parameters (million) | GMACs | steps | '
        'minutes |',
        '|---|---|---|---|---|---|---|---|---|---|---|']
    for backbone in BACKBONES:
        runs = runs_of(records, head, backbone)
        if runs:
            lines.append(_row(records, head, backbone, runs))

    if head in records.latency:
        lines += ['', f'Latency: median (quartiles) of one image, {records.latency[head]["machine"]}.']
    return '\n'.join(lines)


def _row(records: Records, head: str, backbone: str, runs: list[dict]) -> str:
    measured = records.times(head, backbone)
    times = []
    for form in FORMS:
        times.append('{:.1f} ({:.1f} to {:.1f})'.format(*measured[form]) if form in measured else '')

    in_int8 = [run[FORMS[2]] for run in runs if FORMS[2] in run]
    return ' | '.join([
        f'| {backbone}',
        str(len(runs)),
        spread([run['metric'] for run in runs]),
        spread(in_int8) if in_int8 else '',
        *times,
        f'{runs[0]["parameters"] / 1e6:.1f}',
        f'{runs[0]["macs"] / 1e9:.1f}',
        str(runs[0]['steps']),
        f'{mean(run["minutes"] for run in runs):.0f} |'])


def runs_of(records: Records, head: str, backbone: str) -> list[dict]:
    """Those that were measured, by seed."""
    found = [run for key, run in sorted(records.runs.items()) if (key.head, key.backbone) == (head, backbone)]
    return [run for run in found if 'metric' in run]


def curve_of(records: Records, head: str, family: str, form: str, seed: int | None = None) -> dict[float, float]:
    """Metric by latency of a family in a form: the mean of the seeds, or that of one.

    In int8 the metric is that of the engine of seed 0, the one that is timed: engines of other seeds may keep other
    convolutions in float32.
    """
    curve = {}
    for backbone, chosen in BACKBONES.items():
        times = records.times(head, backbone)
        runs = [run for run in runs_of(records, head, backbone) if seed in (None, run['seed'])]
        if form == FORMS[2]:
            values = [run[form] for run in runs if run['seed'] == 0 and form in run]
        else:
            values = [run['metric'] for run in runs]
        if chosen.family == family and form in times and values:
            curve[times[form][0]] = mean(values)
    return dict(sorted(curve.items()))


def at_latency(curve: Mapping[float, float], ms: float) -> float | None:
    """What a family reaches in `ms` or less, linear over the logarithm of latency between the points of its curve.

    A point that a faster one is better than counts as that one. None beyond the ends of the curve, but for `NEAR`.
    """
    times = list(curve)
    if not times or not times[0] / NEAR <= ms <= times[-1] * NEAR:
        return None
    best = np.maximum.accumulate(list(curve.values()))
    return float(np.interp(math.log(ms), np.log(times), best))


def verdict_of(records: Records, head: str) -> str:
    """At the latency of each other backbone: how many points RepVGG is above it, in each form."""
    lines = []
    for form in FORMS:
        for backbone, chosen in BACKBONES.items():
            if chosen.family != 'RepVGG':
                lines += _verdict(records, head, backbone, form)
    return '\n'.join(lines)


def _verdict(records: Records, head: str, backbone: str, form: str) -> list[str]:
    family = BACKBONES[backbone].family
    measured = records.times(head, backbone).get(form)
    if not measured:
        return []
    differences = []
    for seed in sorted({key.seed for key in records.runs}):
        own = curve_of(records, head, family, form, seed).get(measured[0])
        of_repvgg = at_latency(curve_of(records, head, 'RepVGG', form, seed), measured[0])
        if own is not None and of_repvgg is not None:
            differences.append(of_repvgg - own)
    if not differences:
        return [f'{form}: {backbone} at {measured[0]:.1f} ms is not between two RepVGG that were measured.']
    sign, above = (1, 'above') if mean(differences) >= 0 else (-1, 'below')
    values = spread([sign * value for value in differences])
    return [
        f'{form}: at the {measured[0]:.1f} ms of {backbone} RepVGG is {values} points of {METRIC[head]} {above} it.']
