"""A page of tables, charts and pictures as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..files.atomic import atomic_path
from .pictures import ImageComparison

TEMPLATE = Path(__file__).with_name('page.html.j2')
WIDE_REM = 64  # of a chart with a place for each block or layer


@dataclass
class Table:
    """The first cell of a row is its heading. `folded` tables are opened by the reader."""

    head: Sequence[str]
    rows: list[Sequence[str]]
    caption: str = ''
    folded: bool = False
    kind: str = 'table'


@dataclass
class Chart:
    """An SVG of `charts.svg`, which is shown at `width_rem` times the size of the page's text if there is room."""

    svg: Markup
    caption: str = ''
    width_rem: float = 34
    kind: str = 'chart'


@dataclass
class Gallery:
    """Images with their pictures in a row each; `legend` is pairs of a class and its CSS colour."""

    comparisons: list[ImageComparison]
    legend: list[tuple[str, str]]
    caption: str = ''
    kind: str = 'gallery'


@dataclass
class Section:
    title: str
    text: str = ''
    parts: list[Table | Chart | Gallery] = field(default_factory=list)


@dataclass
class Verdict:
    """One figure that a reader should see first: its value, what it is, and a line about it.

    `good` colours it: green or, if False, orange.
    """

    value: str
    name: str
    words: str = ''
    good: bool | None = None


@dataclass
class Page:
    title: str
    kind: str
    facts: dict[str, str]
    verdicts: list[Verdict]
    sections: list[Section]


def render(page: Page) -> str:
    """Whatever is in `page` as text appears as text: names of files cannot become markup."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['base64'] = _base64
    template = environment.from_string(TEMPLATE.read_text(encoding='utf-8'))
    return template.render(page=page)


def write_page(path: str | PathLike, page: Page) -> None:
    """Write to `path`, which afterwards is the old file or the whole new one.

    Raises:
        UserError: it cannot be written.
    """
    content = render(page).encode('utf-8', 'backslashreplace')  # a file's name need not be text
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
