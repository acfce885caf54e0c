"""What a benchmark found as a table for the screen, as a file of figures and as a picture."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..convert.measure import Latency
from ..files.atomic import atomic_path
from ..report.charts import latency_bars, name_above_bars
from .benchmark import Row

HEADS = (
    'model', 'work', 'ms, median (quartiles)', 'ratio', 'kept for backward, MiB', 'peak, MiB', 'million parameters',
    'GFLOPs')


def rows_by_work(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Kinds of work in the order in which they were done."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.work, []).append(row)
    return found


def latencies_of(rows: Sequence[Row]) -> dict[str, Latency]:
    """By model, for a chart."""
    return {row.model: Latency(row.median_ms, row.lower_ms, row.upper_ms) for row in rows}


def figure_texts(row: Row, first: Row) -> tuple[str, str, str, str, str]:
    """The ratio to the time of `first`, MiB kept and at most alive, parameters, GFLOPs: as every table shows them.

    Nothing stands for what is not known, such as the parameters of an engine.
    """
    return (
        f'{row.median_ms / first.median_ms:.2f}',
        _text(row.saved_mib, 0),
        _text(row.peak_mib, 0),
        _text(row.million_parameters, 2),
        _text(row.gflops, 2))


def table(rows: Sequence[Row]) -> str:
    """Ratios are to the first model that did the same work."""
    firsts = {work: done[0] for work, done in rows_by_work(rows).items()}
    cells = [HEADS, ('---',) * len(HEADS)]
    for row in rows:
        time = f'{row.median_ms:.1f} ({row.lower_ms:.1f} to {row.upper_ms:.1f})'
        cells.append((row.model, row.work, time, *figure_texts(row, firsts[row.work])))

    lines = [f'| {" | ".join(texts)} |' for texts in cells]
    return '\n'.join(lines)


def write_json(path: Path, rows: Sequence[Row], setting: Mapping[str, str]) -> None:
    """`rows` as dicts of `Row`'s fields beside what they depend on; UserError if it cannot be written."""
    figures = dict(conditions=setting, rows=[asdict(row) for row in rows])
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + '\n', encoding='utf-8')


def draw(path: Path, rows: Sequence[Row], setting: Mapping[str, str]) -> None:
    """A panel for each kind of work, a bar for each model with the quartiles of its time; format by the suffix.

    Raises:
        UserError: it cannot be written.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = rows_by_work(rows)
    models = {row.model for row in rows}
    height = 0.7 * len(models) + 0.9
    figure, axes = plt.subplots(len(panels), figsize=(9, height * len(panels) + 0.5), squeeze=False)
    for axis, (work, done) in zip(axes[:, 0], panels.items()):
        latencies = latencies_of(done)
        latency_bars(axis, latencies, [_colour(row) for row in done])
        name_above_bars(axis, list(latencies))
        axis.set_title(work)
    axes[-1, 0].set_xlabel('ms, median and quartiles')

    made_with = ', '.join(f'{key} {value}' for key, value in setting.items())
    figure.supxlabel(textwrap.fill(made_with, 120), fontsize=8)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:].lower())
    plt.close(figure)


def _text(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _colour(row: Row) -> str:
    if row.gflops is None:  # an engine
        return 'tab:orange'
    return 'tab:purple' if 'deploy' in row.model else 'tab:blue'
