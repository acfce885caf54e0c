"""The page of a conversion: both forms, for a reader who was not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config

from ..convert.compare import TOLERANCE
from ..deploy.conversion import Conversion
from ..deploy.costs import CostRow, Costs, conditions, cost_rows, size_rows
from ..errors import UserError
from ..openmmlab.model import is_segmentor
from .charts import FORMS, error_chart, latency_chart, range_chart
from .facts import change_text, error_verdict, facts_of, model_title, size_text
from .mistakes import Progress
from .mistakes_section import look_for_mistakes
from .page import WIDE_REM, Chart, Gallery, Page, Section, Table, Verdict
from .pictures import SCORE, UNLABELLED
from .ranges import FUSED, BlockRanges, Range, block_ranges
from .side_by_side import SHIFT, SideBySide, side_by_side

PICTURES = 'Both forms on real images'


def conversion_page(
    conversion: Conversion,
    costs: Costs,
    cfg: Config,
    config_name: str,
    progress: Progress = lambda step: None,
) -> Page:
    """`cfg` is the config that was converted; images come from its validation set if that is there."""
    meta = conversion.meta
    facts = facts_of(
        config_name, meta['source'], meta['source_sha256'], meta['arch'], meta['versions'], conversion.inputs.shape,
        cfg)
    sections, picture_verdicts = sections_of_both_forms(conversion, costs, cfg)
    verdicts = [error_verdict(conversion.errors, TOLERANCE)]
    if costs.latency:
        verdicts.append(_latency_verdict(costs))
    verdicts += [parameter_verdict(costs), *picture_verdicts]
    if picture_verdicts:  # there are images
        section, verdict = look_for_mistakes(cfg, conversion.deploy, 'by the deploy form in PyTorch', progress)
        place = [found.title for found in sections].index(PICTURES)
        sections.insert(place + 1, section)
        verdicts += verdict
    title = model_title(conversion.trained, meta['arch'])
    return Page(f'{title}, {config_name}', 'Conversion report', facts, verdicts, sections)


def sections_of_both_forms(
    conversion: Conversion, costs: Costs, cfg: Config
) -> tuple[list[Section], list[Verdict]]:
    """Costs, errors, images, weights and activations; a verdict if images were compared."""
    trained, deploy = conversion.trained, conversion.deploy
    missing = ''
    try:
        pictures = side_by_side(cfg, {'training form': trained, 'deploy form': deploy})
    except UserError as error:
        pictures, missing = SideBySide([], [], [], 0), str(error)

    if pictures.inputs:
        inputs, source = pictures.inputs, f'{len(pictures.inputs)} images of the validation set'
    else:
        inputs = [conversion.inputs]
        source = (
            f'random input of {size_text(conversion.inputs.shape)}, because there are no images: expect other '
            'ranges on real ones')
    blocks = block_ranges(trained, deploy, inputs)

    sections = [
        _costs_section(conversion, costs),
        _error_section(conversion),
        picture_section(
            PICTURES, pictures, missing,
            'both forms are those of PyTorch, and the training form computes branch by branch'),
        _weight_section(blocks),
        _activation_section(blocks, source),
    ]
    verdicts = []
    if pictures.comparisons:
        unit = 'pixels' if is_segmentor(trained) else 'boxes'
        verdicts.append(picture_verdict(pictures, unit, 'predictions of both forms in PyTorch'))
    return sections, verdicts


def parameter_verdict(costs: Costs) -> Verdict:
    """Millions of parameters in both forms."""
    before, after = costs.parameters
    return Verdict(f'{after / 1e6:.2f} M', 'parameters', f'{before / 1e6:.2f} M in training form')


def _latency_verdict(costs: Costs) -> Verdict:
    branches, training, deploy = (costs.latency[name].median_ms for name in FORMS)
    good = None  # faster than one of them alone
    if deploy <= min(branches, training):
        good = True
    elif deploy > max(branches, training):
        good = False
    return Verdict(
        f'{branches / deploy:.2f}x',
        'as fast as branch by branch',
        f'{branches:.1f} to {deploy:.1f} ms; against the training form as evaluated {training / deploy:.2f}x',
        good=good)


def picture_verdict(pictures: SideBySide, unit: str, words: str) -> Verdict:
    """How many pixels or boxes of all images differ; `words` say whose."""
    differing = sum(comparison.differing for comparison in pictures.comparisons)
    total = sum(comparison.total for comparison in pictures.comparisons)
    return Verdict(
        f'{differing:,} of {total:,}',
        f'{unit} differ',
        f'{words}, on {len(pictures.comparisons)} validation images')


def _costs_section(conversion: Conversion, costs: Costs) -> Section:
    text = f'{costs.blocks} RepVGG blocks were fused.'
    if not costs.latency:  # left out, or with those of an engine in one table
        return Section('Both forms', text, [_table_of(size_rows(costs.parameters, costs.macs))])

    table = _table_of(cost_rows(costs))
    latency = {title: costs.latency[name] for name, title in FORMS.items()}
    chart = Chart(latency_chart(latency, 'Latency of both forms'), conditions(conversion, costs))
    return Section(
        'Both forms',
        f'{text} As evaluated, each block of the training form is one convolution, '
        'too, whose kernel a CPU keeps between calls; branch by branch is what it costs to compute the branches one '
        'by one, as other implementations do.',
        [table, chart])


def _table_of(rows: Sequence[CostRow]) -> Table:
    return Table(('', 'training form', 'deploy form', 'change'), [_with_change(row) for row in rows])


def _with_change(row: CostRow) -> tuple[str, str, str, str]:
    change = ''
    if row.training is not None and row.deploy is not None:
        change = change_text(row.training, row.deploy)
    return row.name, *row.texts, change


def _error_section(conversion: Conversion) -> Section:
    remarks = ''.join(f' {remark}' for remark in conversion.errors.remarks())
    chart = error_chart(conversion.errors, TOLERANCE, 'Relative error of each output')
    return Section(
        'They compute the same',
        'Both forms ran on the same random input. The relative error of an output is the largest difference, divided '
        f'by the largest value. Above {TOLERANCE:g} nothing is written.' + remarks,
        [Chart(chart, f'Input of {size_text(conversion.inputs.shape)}.')])


def picture_section(title: str, pictures: SideBySide, missing: str, words: str) -> Section:
    """The images with their pictures and a legend, or why there are none; `words` say who predicts."""
    if missing:
        return Section(title, f'No images were used. {missing}')
    if not pictures.comparisons:
        return Section(title, 'Predictions of segmentors and detectors are drawn, and this is neither.')
    return Section(
        title,
        f'{len(pictures.comparisons)} of the {pictures.available:,} images of the validation set, at even distances, '
        f'through the pipeline and post-processing of the toolbox; {words}.',
        [Gallery(pictures.comparisons, pictures.legend, legend_words(pictures))])


def legend_words(pictures: SideBySide) -> str:
    """What marks mean that are not classes."""
    if pictures.legend[-1:] and pictures.legend[-1][0] == UNLABELLED:
        return 'In the last picture of a row, pink marks the pixels that differ.'
    return (
        f'A number is the score in percent; boxes below {100 * SCORE:.0f} are not drawn. In the last picture of a row, '
        f'pink marks boxes without a counterpart of the same class within {SHIFT:g} pixel.')


def _weight_section(blocks: Sequence[BlockRanges]) -> Section:
    section = Section(
        'Weights, before and after fusing',
        'Each branch as it enters the sum: its kernel times the scale of its BatchNorm. Beside them, in green, the one '
        'kernel that they become. A thin line runs from the smallest to the largest value, the bar from the 1st to the '
        '99th percentile. The axis is logarithmic away from zero.')
    if not blocks:
        return section

    ranges = {block.name: block.weights for block in blocks}
    table = _range_table(ranges)
    table.head = (*table.head, 'largest / median channel')
    table.rows = [(*row, f'{block.imbalance:.1f}') for row, block in zip(table.rows, blocks)]

    worst = max(blocks, key=lambda block: block.imbalance)
    caption = (
        f'Most uneven is {worst.name}: the largest value of its largest output channel is '
        f'{worst.imbalance:.1f} times that of its median channel, which one int8 scale for the whole kernel '
        'would have to cover.')
    chart = range_chart(_short(ranges), 'Weight ranges of each block')
    section.parts = [Chart(chart, caption, WIDE_REM), table]
    return section


def _activation_section(blocks: Sequence[BlockRanges], source: str) -> Section:
    ranges = {block.name: block.activations for block in blocks if block.activations}
    section = Section(
        'Activations, before and after fusing',
        f'What each branch gives, and in green what their one convolution gives, before the activation function; on '
        f'{source}. Lines and bars as above.')
    if ranges:
        chart = range_chart(_short(ranges), 'Activation ranges of each block')
        section.parts = [Chart(chart, '', WIDE_REM), _range_table(ranges)]
    return section


def _range_table(ranges: Mapping[str, Mapping[str, Range]]) -> Table:
    """A row a block, a column a branch."""
    labels: dict[str, None] = {}
    for found in ranges.values():
        labels |= dict.fromkeys(found)
    labels.pop(FUSED, None)
    columns = [*labels, FUSED]

    rows = []
    for name, found in ranges.items():
        cells = []
        for label in columns:
            cells.append(f'{found[label].low:.3g} to {found[label].high:.3g}' if label in found else '')
        rows.append((name, *cells))
    return Table(('block', *columns), rows, 'Smallest and largest values as a table', folded=True)


def _short(ranges: Mapping[str, Mapping[str, Range]]) -> dict:
    """Names without what is common to all up to a dot, for the axis of a chart."""
    names = [name.split('.') for name in ranges]
    common = 0
    while len(names) > 1 and _share_part(names, common):
        common += 1

    shorter = ['.'.join(name[common:]) for name in names]
    return dict(zip(shorter, ranges.values()))


def _share_part(names: Sequence[Sequence[str]], place: int) -> bool:
    """Whether all have the same part at `place`, and more after it."""
    first = names[0]
    return all(len(name) > place + 1 and name[place] == first[place] for name in names)
