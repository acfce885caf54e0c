"""Charts as SVG that stands inside a page: text in the page's own colour, so that it reads on light and dark."""

from __future__ import annotations

import html
import io
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..convert.measure import Latency
from .ranges import FUSED, Range

INK = '#010203'  # stands for the page's colour
GREY, BLUE, GREEN, ORANGE, PURPLE = '#8a8f98', '#4a8fe0', '#2fa36b', '#e0873a', '#a06bd0'
BRANCH_COLOURS = (BLUE, ORANGE, PURPLE, GREY)
NARROW = 5.2  # inches: its text can be read on a telephone
STYLE = {
    'svg.fonttype': 'none', 'text.parse_math': False, 'font.size': 10, 'axes.titlesize': 10,
    **dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), INK),
    **dict.fromkeys(('figure.facecolor', 'axes.facecolor', 'savefig.facecolor'), 'none'),
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.axisbelow': True,
    'grid.color': '#808080', 'grid.alpha': 0.3, 'grid.linewidth': 0.6, 'legend.frameon': False}


def svg(draw: Callable[[Figure], None], width: float, height: float, label: str) -> Markup:
    """`draw` fills a figure of that size in inches; `label` is read aloud in its place."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format='svg', metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type')))
    content = text.getvalue()
    content = content[content.index('<svg'):].replace(INK, 'currentColor')
    prefix = re.sub(r'\W+', '-', label)  # several charts share a page, and ids are unique in it
    content = re.sub(r'(\bid="|="#|url\(#)', rf'\g<1>{prefix}-', content)
    return Markup(content.replace('<svg', f'<svg role="img" aria-label="{html.escape(label)}"', 1))


def latency_bars(axis: Axes, latencies: Mapping[str, Latency], colours: Sequence[str], digits: int = 1) -> None:
    """A bar for each name: the median, with a line from the lower to the upper quartile."""
    done = list(latencies.values())
    medians = [latency.median_ms for latency in done]
    spread = [[latency.median_ms - latency.lower_ms for latency in done],
              [latency.upper_ms - latency.median_ms for latency in done]]
    bars = axis.barh(list(latencies), medians, xerr=spread, capsize=3, color=colours,
                     ecolor=matplotlib.rcParams['axes.edgecolor'])
    axis.bar_label(bars, [f'{median:.{digits}f} ms' for median in medians], padding=8)
    axis.set_xlim(0, 1.35 * max(latency.upper_ms for latency in done))
    axis.invert_yaxis()


def latency_chart(latencies: Mapping[str, Latency], label: str) -> Markup:
    """Training forms in blue, branch by branch in grey, whatever is deployed in green."""
    colours = [GREY if 'branch' in name else BLUE if 'training' in name else GREEN for name in latencies]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        latency_bars(axis, latencies, colours)
        axis.set_xlabel('ms a call, median and quartiles')
        axis.spines['left'].set_visible(False)
        axis.tick_params(left=False)
    return svg(draw, NARROW, 0.7 + 0.44 * len(latencies), label)


def error_chart(errors: Mapping[str, float], tolerance: float, label: str) -> Markup:
    """Relative errors on a logarithmic scale beside what is allowed; an error of 0 has no bar."""
    lowest = min([error for error in errors.values() if error > 0] + [tolerance])

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        left = lowest / 10
        bars = axis.barh(list(errors), [max(error - left, 0) for error in errors.values()], left=left, color=GREEN)
        axis.bar_label(bars, [f'{error:.1e}' if error else 'equal' for error in errors.values()], padding=4)
        axis.axvline(tolerance, color=ORANGE, linestyle='--', linewidth=1.2)
        axis.annotate(f'at most {tolerance:g}', (tolerance, 1), xycoords=('data', 'axes fraction'),
                      xytext=(-4, 2), textcoords='offset points', color=ORANGE, ha='right')
        axis.set(xscale='log', xlim=(left, 3 * max(tolerance, *errors.values())), xlabel='relative error')
        axis.xaxis.set_major_formatter(lambda error, _: f'{error:.0e}')
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis='x')
        axis.invert_yaxis()
    return svg(draw, NARROW, 0.9 + 0.27 * len(errors), label)


def range_chart(ranges: Mapping[str, Mapping[str, Range]], label: str) -> Markup:
    """Of each layer and branch a thin line from smallest to largest value, a bar from 1st to 99th percentile.

    The axis is linear up to the bar of the middle layer's fused convolution, logarithmic beyond.
    """
    branches = list(dict.fromkeys(branch for found in ranges.values() for branch in found if branch != FUSED))
    colours = {branch: BRANCH_COLOURS[i % len(BRANCH_COLOURS)] for i, branch in enumerate(branches)} | {FUSED: GREEN}

    bars = [max(abs(found[FUSED].p1), abs(found[FUSED].p99)) for found in ranges.values()]
    linear = 10 ** math.floor(math.log10(max(statistics.median(bars), 1e-30)))

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        step = 0.8 / len(colours)
        for i, (branch, colour) in enumerate(colours.items()):
            found = [(x + (i + 0.5) * step - 0.4, layer[branch]) for x, layer in enumerate(ranges.values())
                     if branch in layer]
            places = [x for x, _ in found]
            axis.vlines(places, [r.low for _, r in found], [r.high for _, r in found], color=colour, linewidth=1)
            axis.bar(places, [r.p99 - r.p1 for _, r in found], step * 0.8, [r.p1 for _, r in found], color=colour,
                     label=branch)
        axis.set_yscale('symlog', linthresh=linear, linscale=0.6)
        axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axis.axhline(0, color=INK, linewidth=0.6)
        axis.set_xticks(range(len(ranges)), ranges, rotation=60, ha='right', rotation_mode='anchor', fontsize=9)
        axis.set_xlim(-0.6, len(ranges) - 0.4)
        axis.grid(axis='y')
        figure.legend(loc='outside upper left', ncols=len(colours), fontsize=9)
    return svg(draw, max(6.4, 0.42 * len(ranges) + 1), 3.6, label)
