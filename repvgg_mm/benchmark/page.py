"""The page of a benchmark: the fastest of each kind of work, then a chart and a table for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..report.charts import latency_chart
from ..report.facts import now_text
from ..report.page import Chart, Page, Section, Table, Verdict
from .benchmark import Row
from .output import HEADS, figure_texts, latencies_of, rows_by_work


def benchmark_page(rows: Sequence[Row], setting: Mapping[str, str]) -> Page:
    """`setting` is what the figures depend on, as `Setting.conditions` says it."""
    verdicts, sections = [], []
    for work, done in rows_by_work(rows).items():
        fastest = min(done, key=lambda row: row.median_ms)
        verdicts.append(Verdict(f'{fastest.median_ms:.1f} ms', f'fastest {work}', fastest.model, good=True))
        sections.append(_section(work, done))

    facts = dict(date=now_text())
    for name, value in setting.items():
        facts[name.replace('_', ' ')] = value

    models = {row.model for row in rows}
    title = rows[0].model if len(models) == 1 else f'{len(models)} models side by side'
    return Page(title, 'Benchmark report', facts, verdicts, sections)


def _section(work: str, rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        quartiles = f'{row.lower_ms:.1f} to {row.upper_ms:.1f}'
        cells.append((row.model, f'{row.median_ms:.1f}', quartiles, *figure_texts(row, rows[0])))

    head = ('model', 'ms, median', 'quartiles', *HEADS[3:])
    table = Table(head, cells, 'Ratios are to the first model. No weights are loaded.')
    chart = Chart(latency_chart(latencies_of(rows), f'Latency, {work}'))
    return Section(work.capitalize(), '', [chart, table])
