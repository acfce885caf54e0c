"""The section of a page about a model's mistakes: what each class is taken for, and the worst images."""

from __future__ import annotations

import numpy as np
from mmengine.config import Config
from torch import nn

from ..errors import UserError
from .charts import confusion_chart
from .mistakes import MATCH, Mistakes, Progress, find_mistakes
from .page import WIDE_REM, Chart, Gallery, Section, Table, Verdict
from .pictures import SCORE

MOST = 20  # classes in the chart
TITLE = 'What it gets right and wrong'


def look_for_mistakes(
    cfg: Config, model: nn.Module, words: str, progress: Progress
) -> tuple[Section, list[Verdict]]:
    """The section of `find_mistakes` and its verdict, or a section that says why there is none.

    `words` say who predicts.
    """
    progress('Looking for mistakes on the validation set')
    try:
        found = find_mistakes(cfg, model, progress=progress)
    except UserError as error:
        return Section(TITLE, f'Not counted. {error}'), []
    return mistakes_section(found, words), [mistakes_verdict(found, words)]


def mistakes_verdict(found: Mistakes, words: str) -> Verdict:
    """The mean IoU of a segmentor; of a detector how many objects are found."""
    where = f'on {_which(found)} {found.available:,} images of the validation set; {words}'
    if not found.boxes:
        return Verdict(f'{100 * np.nanmean(found.iou):.1f} %', 'mean IoU of the classes', where)
    objects, right = found.counts[:-1].sum(), found.counts.diagonal().sum()
    return Verdict(f'{right:,} of {objects:,}', 'objects are found', where)


def mistakes_section(found: Mistakes, words: str) -> Section:
    """`words` say who predicts."""
    unit = 'objects' if found.boxes else 'pixels'
    text = f'On {_which(found)} {found.available:,} images of the validation set; {words}.'
    if found.boxes:
        text += (
            f' An object is found if a box of its class with a score of {100 * SCORE:.0f} percent or more covers it '
            f'with an intersection over union of {MATCH:g} or more.')

    chosen = _most_mistaken(found)
    counts = found.counts[np.ix_(chosen, chosen)]
    with np.errstate(invalid='ignore'):
        shares = counts / found.counts.sum(1)[chosen, None]
    names = [found.classes[i] for i in chosen]
    caption = f'A row is what the {unit} of a class, 100 percent, were taken for.'
    if len(chosen) < len(found.classes):
        caption += f' The {len(chosen)} classes with most mistakes.'
    chart = Chart(
        confusion_chart(shares, names, 'What each class is taken for'), caption, min(WIDE_REM, 9 + 2.6 * len(names)))

    words = 'missed objects, boxes too many and those of another class' if found.boxes else 'what is wrong'
    gallery = Gallery(
        found.worst, found.legend,
        f'The images with the largest share of mistakes. In the last picture of a row, pink marks {words}.')
    return Section(TITLE, text, [_class_table(found), chart, gallery])


def _which(found: Mistakes) -> str:
    return 'all' if found.images == found.available else f'{found.images:,} of the'


def _most_mistaken(found: Mistakes) -> list[int]:
    """Classes that are there or were predicted, in their order; of many those with most mistakes."""
    of_class = found.counts.sum(0) + found.counts.sum(1)
    wrong = of_class - 2 * found.counts.diagonal()
    there = np.flatnonzero(of_class)
    return sorted(there[np.argsort(-wrong[there], kind='stable')][:MOST].tolist())


def _class_table(found: Mistakes) -> Table:
    classes = found.classes[:-1] if found.boxes else found.classes
    shares = {'found, %': found.found, 'right, %': found.right}
    if not found.boxes:
        shares['IoU, %'] = found.iou

    rows = []
    for i, name in enumerate(classes):
        truth = int(found.counts[i].sum())
        size = f'{truth:,}' if found.boxes else f'{100 * truth / found.counts.sum():.1f}'
        rows.append((name, size, *(_percent(share[i]) for share in shares.values()), _taken_for(found, i)))

    unit = 'objects' if found.boxes else '% of labelled pixels'
    return Table(
        ('class', unit, *shares, 'most often taken for'), rows,
        'Found is the share of a class that was taken for it; right is the share of what was taken for it that is it.')


def _taken_for(found: Mistakes, i: int) -> str:
    """The class that takes most of what is not found."""
    others = found.counts[i].copy()
    others[i] = 0
    if not others.any():
        return ''
    return f'{found.classes[int(others.argmax())]} ({100 * others.max() / found.counts[i].sum():.0f} %)'


def _percent(share: float) -> str:
    return '' if np.isnan(share) else f'{100 * share:.1f}'
