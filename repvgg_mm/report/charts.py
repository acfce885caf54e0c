"""Charts as SVG that stands inside a page: text in the page's own colour, so that it reads on light and dark."""

from __future__ import annotations

import html
import io
import math
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from ..convert.measure import Latency
from .ranges import FUSED, Range

INK = '#010203'  # stands for the page's colour
GREY = '#8a8f98'
BLUE = '#4a8fe0'
GREEN = '#2fa36b'
ORANGE = '#e0873a'
PURPLE = '#a06bd0'
BRANCH_COLOURS = (BLUE, ORANGE, PURPLE, GREY)

# Of `form_latency`: what a reader is shown for each.
FORMS = {
    'branches': 'training form,\nbranch by branch',
    'training': 'training form,\nas evaluated',
    'deploy': 'deploy form',
}
NAME_WIDTH = 64  # letters in a line of a bar's name
LEAST_SHARE = 0.005  # of a class that is written into a chart
NARROW = 5.2  # inches: its text can be read on a telephone
INKED = ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color')
CLEAR = ('figure.facecolor', 'axes.facecolor', 'savefig.facecolor')
STYLE = {
    'svg.fonttype': 'none',
    'text.parse_math': False,
    'font.size': 10,
    'axes.titlesize': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'grid.color': '#808080',
    'grid.alpha': 0.3,
    'grid.linewidth': 0.6,
    'legend.frameon': False,
    **dict.fromkeys(INKED, INK),
    **dict.fromkeys(CLEAR, 'none'),
}
WITHOUT_METADATA = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))


def svg(draw: Callable[[Figure], None], width: float, height: float, label: str) -> Markup:
    """`draw` fills a figure of that size in inches; `label` is read aloud in its place."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format='svg', metadata=WITHOUT_METADATA)

    content = text.getvalue()
    content = content[content.index('<svg'):].replace(INK, 'currentColor')
    prefix = re.sub(r'\W+', '-', label)  # several charts share a page, and ids are unique in it
    content = re.sub(r'(\bid="|="#|url\(#)', rf'\g<1>{prefix}-', content)

    opening = f'<svg role="img" aria-label="{html.escape(label)}"'
    return Markup(content.replace('<svg', opening, 1))


def latency_bars(axis: Axes, latencies: Mapping[str, Latency], colours: Sequence[str], digits: int = 1) -> None:
    """A bar for each name: the median, with a line from the lower to the upper quartile."""
    medians, below, above, texts = [], [], [], []
    for latency in latencies.values():
        medians.append(latency.median_ms)
        below.append(latency.median_ms - latency.lower_ms)
        above.append(latency.upper_ms - latency.median_ms)
        texts.append(f'{latency.median_ms:.{digits}f} ms')

    ink = matplotlib.rcParams['axes.edgecolor']
    bars = axis.barh(list(latencies), medians, xerr=[below, above], capsize=3, color=colours, ecolor=ink)
    axis.bar_label(bars, texts, padding=8)

    longest = max(latency.upper_ms for latency in latencies.values())
    axis.set_xlim(0, 1.35 * longest)
    axis.invert_yaxis()


def name_above_bars(axis: Axes, names: Sequence[str]) -> None:
    """Names above their bars rather than beside them: however long they are, the bars keep their width."""
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.5, -0.8)
    for place, (bar, name) in enumerate(zip(axis.patches, names)):
        bar.set(y=place - 0.22, height=0.5)
        lines = textwrap.fill(name, NAME_WIDTH)
        axis.annotate(lines, (0, place - 0.26), xytext=(2, 1), textcoords='offset points', va='bottom')


def latency_chart(latencies: Mapping[str, Latency], label: str) -> Markup:
    """Grey is what is computed branch by branch, blue the first of the others, green what is faster, orange slower.

    A median within the quartiles of the first is blue too: it is neither.
    """
    first = next((found for name, found in latencies.items() if not _by_branch(name)), None)
    colours = [_colour_beside(first, name, latency) for name, latency in latencies.items()]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        latency_bars(axis, latencies, colours)
        name_above_bars(axis, list(latencies))
        axis.set_xlabel('ms a call, median and quartiles')
        axis.spines['left'].set_visible(False)

    return svg(draw, NARROW, 0.7 + 0.7 * len(latencies), label)


def noise_chart(layers: Mapping[str, tuple[float, bool]], label: str) -> Markup:
    """Signal to noise (dB) of each layer, the noise of all before it included; orange where it stays in float32."""
    finite = [snr for snr, _ in layers.values() if math.isfinite(snr)]
    highest = max(finite, default=1.0)
    heights = [snr if math.isfinite(snr) else highest for snr, _ in layers.values()]
    colours = [ORANGE if kept else BLUE for _, kept in layers.values()]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.bar(range(1, len(layers) + 1), heights, 0.7, color=colours)
        axis.axhline(0, color=INK, linewidth=0.6)
        axis.set_xlim(0.4, len(layers) + 0.6)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel='layer, from the input to the output', ylabel='signal to noise, dB')
        axis.grid(axis='y')

    return svg(draw, 2 * NARROW, 2.6, label)


def error_chart(errors: Mapping[str, float], tolerance: float, label: str) -> Markup:
    """Relative errors on a logarithmic scale beside what is allowed; an error of 0 has no bar."""
    smallest = min([tolerance, *(error for error in errors.values() if error > 0)])
    left = smallest / 10
    right = 3 * max(tolerance, *errors.values())
    lengths = [max(error - left, 0) for error in errors.values()]
    texts = [f'{error:.1e}' if error else 'equal' for error in errors.values()]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        bars = axis.barh(list(errors), lengths, left=left, color=GREEN)
        axis.bar_label(bars, texts, padding=4)
        axis.set(xscale='log', xlim=(left, right), xlabel='relative error')

        axis.axvline(tolerance, color=ORANGE, linestyle='--', linewidth=1.2)
        axis.annotate(
            f'at most {tolerance:g}', (tolerance, 1), xycoords=('data', 'axes fraction'),
            xytext=(-4, 2), textcoords='offset points', color=ORANGE, ha='right')

        axis.xaxis.set_major_formatter(lambda error, _: f'{error:.0e}')
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis='x')
        axis.invert_yaxis()

    return svg(draw, NARROW, 0.9 + 0.27 * len(errors), label)


def range_chart(ranges: Mapping[str, Mapping[str, Range]], label: str) -> Markup:
    """Of each layer and branch a thin line from smallest to largest value, a bar from 1st to 99th percentile.

    The axis is linear up to the bar of the middle layer's fused convolution, logarithmic beyond.
    """
    colours = _colours_of_branches(ranges)
    step = 0.8 / len(colours)

    fused = [found[FUSED] for found in ranges.values()]
    middle = statistics.median(max(abs(one.p1), abs(one.p99)) for one in fused)
    linear = 10 ** math.floor(math.log10(max(middle, 1e-30)))

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for i, (branch, colour) in enumerate(colours.items()):
            offset = (i + 0.5) * step - 0.4
            _range_bars(axis, ranges, branch, colour, offset, 0.8 * step)

        axis.set_yscale('symlog', linthresh=linear, linscale=0.6)
        axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axis.axhline(0, color=INK, linewidth=0.6)
        axis.set_xticks(range(len(ranges)), ranges, rotation=60, ha='right', rotation_mode='anchor', fontsize=9)
        axis.set_xlim(-0.6, len(ranges) - 0.4)
        axis.grid(axis='y')
        figure.legend(loc='outside upper left', ncols=len(colours), fontsize=9)

    width = max(6.4, 0.42 * len(ranges) + 1)
    return svg(draw, width, 3.6, label)


def confusion_chart(shares: np.ndarray, names: Sequence[str], label: str) -> Markup:
    """A row for each class: the share (0 to 1) of it that was taken for each class; nan in a row without any.

    Green is right, orange wrong, the stronger the more; shares below half a percent are not written.
    """
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for i, j in np.ndindex(*shares.shape):
            share = shares[i, j]
            if share > 0:
                colour = GREEN if i == j else ORANGE
                axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=colour, alpha=0.9 * share, linewidth=0))
            if share >= LEAST_SHARE:
                axis.text(j, i, f'{100 * share:.0f}', ha='center', va='center', fontsize=8)

        places = range(len(names))
        axis.set_xticks(places, names, rotation=60, ha='right', rotation_mode='anchor', fontsize=9)
        axis.set_yticks(places, names, fontsize=9)
        axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
        axis.set(xlabel='taken for', ylabel='is')
        axis.tick_params(length=0)

    side = 0.42 * len(names)
    return svg(draw, side + 1.6, side + 1.4, label)


def _range_bars(
    axis: Axes, ranges: Mapping[str, Mapping[str, Range]], branch: str, colour: str, offset: float, width: float
) -> None:
    """The lines and bars of one branch in every layer that has it."""
    places, found = [], []
    for place, layer in enumerate(ranges.values()):
        if branch in layer:
            places.append(place + offset)
            found.append(layer[branch])

    axis.vlines(places, [one.low for one in found], [one.high for one in found], color=colour, linewidth=1)
    heights = [one.p99 - one.p1 for one in found]
    bottoms = [one.p1 for one in found]
    axis.bar(places, heights, width, bottoms, color=colour, label=branch)


def _colours_of_branches(ranges: Mapping[str, Mapping[str, Range]]) -> dict[str, str]:
    """Of each branch in the order in which it appears; the fused convolution is last and green."""
    branches: dict[str, None] = {}
    for found in ranges.values():
        branches |= dict.fromkeys(found)
    branches.pop(FUSED, None)

    colours = {}
    for i, branch in enumerate(branches):
        colours[branch] = BRANCH_COLOURS[i % len(BRANCH_COLOURS)]
    colours[FUSED] = GREEN
    return colours


def _by_branch(name: str) -> bool:
    return 'branch by branch' in name


def _colour_beside(first: Latency | None, name: str, latency: Latency) -> str:
    if _by_branch(name):
        return GREY
    if first.lower_ms <= latency.median_ms <= first.upper_ms:
        return BLUE
    return GREEN if latency.median_ms < first.median_ms else ORANGE
