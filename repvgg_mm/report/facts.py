"""What the pages of a conversion and of an export share: facts about a checkpoint, and how figures are written."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime

import torch
from mmengine.config import Config
from torch import nn

from ..convert.measure import cpu_name
from ..openmmlab.model import is_segmentor
from .page import Verdict


def facts_of(
    config_name: str,
    source: str,
    sha256: str,
    arch: object,
    versions: Mapping[str, str],
    shape: Sequence[int],
    cfg: Config,
) -> dict[str, str]:
    """The lines at the top of a page: where its model came from, and where it was looked at."""
    used = dict(versions, python=platform.python_version())
    words = [f'{name} {version}' for name, version in used.items()]
    return dict(
        config=config_name,
        checkpoint=source,
        sha256=sha256,
        architecture=str(arch),
        **data_facts(cfg),
        input=size_text(shape),
        date=now_text(),
        machine=f'{cpu_name()}, {torch.get_num_threads()} threads',
        versions=', '.join(words))


def model_title(model: nn.Module, arch: object) -> str:
    """Such as 'PSPHead on RepVGG-A0', a segmentor by its head, or 'RetinaNet on RepVGG-A0'."""
    named = model.decode_head if is_segmentor(model) and hasattr(model, 'decode_head') else model
    name = type(named).__name__
    if not isinstance(arch, str):
        return name
    return f'{name} on RepVGG-{arch.removeprefix("RepVGG-")}'


def data_facts(cfg: Config) -> dict[str, str]:
    """The validation set of a config and the metric by which it judges, where it has them."""
    facts = {}
    loader, evaluator = cfg.get('val_dataloader'), cfg.get('val_evaluator')
    if loader:
        dataset = loader['dataset']
        words = [str(dataset['type']), dataset.get('data_root') or '']
        facts['data set'] = ', '.join(filter(None, words))
    if evaluator:
        parts = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
        facts['metric'] = ', '.join(_metric_text(part) for part in parts)
    return facts


def _metric_text(evaluator: Mapping) -> str:
    names = evaluator.get('iou_metrics') or evaluator.get('metric')
    if not names:
        return str(evaluator['type'])
    names = [names] if isinstance(names, str) else names
    return f'{evaluator["type"]} ({", ".join(names)})'


def error_verdict(errors: Mapping[str, float], tolerance: float, words: str = '') -> Verdict:
    """The worst relative error of all outputs, and what is allowed."""
    worst = max(errors, key=errors.get)
    before = f'{words}, ' if words else ''
    value = f'{errors[worst]:.1e}' if errors[worst] else 'equal'
    words = f'on {worst}, of a random input; {before}at most {tolerance:g} allowed'
    return Verdict(value, 'worst relative error', words, good=True)


def change_text(before: float, after: float) -> str:
    """In percent, with a proper minus sign."""
    text = f'{100 * (after / before - 1):+.1f} %'
    return text.replace('-', '\N{MINUS SIGN}')


def size_text(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


def now_text() -> str:
    return datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %z')
