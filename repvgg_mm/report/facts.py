"""What the pages of a conversion and of an export share: facts about a checkpoint, and how figures are written."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime

import torch

from ..convert.measure import cpu_name
from .page import Verdict


def facts_of(
    config_name: str, source: str, sha256: str, arch: object, versions: Mapping[str, str], shape: Sequence[int]
) -> dict[str, str]:
    """The lines at the top of a page: where its model came from, and where it was looked at."""
    used = dict(versions, python=platform.python_version())
    words = [f'{name} {version}' for name, version in used.items()]
    return dict(
        config=config_name,
        checkpoint=source,
        sha256=sha256,
        architecture=str(arch),
        input=size_text(shape),
        date=now_text(),
        machine=f'{cpu_name()}, {torch.get_num_threads()} threads',
        versions=', '.join(words))


def error_verdict(errors: Mapping[str, float], tolerance: float, words: str = '') -> Verdict:
    """The worst relative error of all outputs, and what is allowed."""
    worst = max(errors, key=errors.get)
    before = f'{words}, ' if words else ''
    return Verdict(
        f'{errors[worst]:.1e}', 'worst relative error', f'on {worst}; {before}at most {tolerance:g} allowed')


def change_text(before: float, after: float) -> str:
    """In percent, with a proper minus sign."""
    text = f'{100 * (after / before - 1):+.1f} %'
    return text.replace('-', '\N{MINUS SIGN}')


def size_text(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


def now_text() -> str:
    return datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %z')
