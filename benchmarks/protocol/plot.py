"""Accuracy over latency, a row of panels for each head, a panel for each form that is deployed."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from repvgg_mm.files.atomic import atomic_path

from .backbones import BACKBONES, HEADS
from .records import FORMS, Records
from .tables import METRIC, TITLE, curve_of

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

TICKS = (1, 1.5, 2, 3, 4, 5, 7)  # of each power of ten
STYLES = {  # of a family: colour and marker
    'RepVGG': ('tab:green', 'o'),
    'ResNet': ('tab:blue', 's'),
    'MobileNetV2': ('tab:orange', '^'),
}


def draw(records: Records, path: Path) -> None:
    """The plot of every head whose latency was measured."""
    heads = [head for head in HEADS if head in records.latency]
    size = (4 * len(FORMS), 3.6 * len(heads))
    figure, axes = plt.subplots(len(heads), len(FORMS), figsize=size, squeeze=False, sharey='row', layout='constrained')
    for row, head in zip(axes, heads):
        for axis, form in zip(row, FORMS):
            _draw_panel(axis, records, head, form)
            axis.set_title(f'{TITLE[head].split(",")[0]}\n{form}', fontsize=10)
        row[0].set_ylabel(METRIC[head])

    for axis in axes[-1]:
        axis.set_xlabel('ms an image')
    lines, families = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, families, loc='outside lower center', ncols=len(families), frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format='png')
    plt.close(figure)


def _draw_panel(axis: Axes, records: Records, head: str, form: str) -> None:
    for family, (colour, marker) in STYLES.items():
        curve = curve_of(records, head, family, form)
        if curve:
            axis.plot(list(curve), list(curve.values()), color=colour, marker=marker, label=family)

    for backbone, chosen in BACKBONES.items():
        of_form = records.times(head, backbone).get(form)
        values = curve_of(records, head, chosen.family, form)
        if of_form and of_form[0] in values:
            short = backbone.split('-')[-1] if '-' in backbone else ''
            point = (of_form[0], values[of_form[0]])
            axis.annotate(short, point, textcoords='offset points', xytext=(5, -11), fontsize=8)

    axis.set_xscale('log')
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_major_locator(LogLocator(subs=TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(0.12)
    axis.grid(alpha=0.3)
