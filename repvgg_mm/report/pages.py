"""The pages of `--report`: what a conversion, an export or a benchmark found, for a reader who was not there."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

import torch
from mmengine.config import Config

from ..convert.measure import Latency, cpu_name, interleaved_latency
from ..deploy.conversion import TOLERANCE, Conversion
from ..deploy.costs import Costs, conditions, measure_costs
from ..engine.engine import Engine
from ..errors import UserError
from ..export.export import Exported
from ..export.networks import network_of
from .benchmark import Row, figure_text
from .charts import error_chart, latency_chart, range_chart
from .page import Chart, Gallery, Page, Section, Table, Verdict
from .ranges import FUSED, Layer, Range, layer_ranges
from .side_by_side import SideBySide, side_by_side

FORMS = {'branches': 'training form,\nbranch by branch', 'training': 'training form,\nas evaluated',
         'deploy': 'deploy form'}


def conversion_page(conversion: Conversion, costs: Costs, cfg: Config, config_name: str) -> Page:
    """`cfg` is the config that was converted; images come from its validation set if that is there."""
    sections, verdict = _form_sections(conversion, costs, cfg)
    return Page(
        config_name, 'Conversion report', _facts(config_name, conversion.meta, tuple(conversion.inputs.shape)),
        [_error_verdict(conversion.errors), _latency_verdict(costs), _parameter_verdict(costs), *verdict], sections)


def export_page(exported: Exported, cfg: Config, config_name: str, conversion: Conversion | None) -> Page:
    """With the sections of a conversion if the checkpoint was in training form, else `conversion` is None."""
    meta = exported.meta
    latencies = engine_latency(exported, conversion)
    engine, torch_form = latencies['engine'], latencies['PyTorch, deploy form']
    errors = {f'{name}, {_size(compared["shape"])}': error
              for compared in meta['compared'] for name, error in compared['errors'].items()}
    ratio = f'{torch_form.median_ms / engine.median_ms:.2f}x'
    verdicts = [
        _error_verdict(errors, meta['tolerance'], f'engine against PyTorch{_before_quantising(meta)}'),
        Verdict(f'{engine.median_ms:.1f} ms', 'a call of the engine',
                f'{ratio} as fast as the deploy form in PyTorch ({torch_form.median_ms:.1f} ms)')]
    sections = [_engine_section(exported), _engine_latency_section(exported, latencies)]
    if meta.get('quantisation'):
        found = meta['quantisation']
        verdicts.insert(0, Verdict(f'{found["int8"]:.2f}', f'{found["metric"]} in int8',
                                   f'{found["float32"]:.2f} in float32, on the validation set'))
        sections.append(_quantisation_section(found))
    if conversion is not None:
        costs = measure_costs(conversion)
        forms, more = _form_sections(conversion, costs, cfg)
        verdicts += [_parameter_verdict(costs), *more]
        sections += forms
    else:
        sections.append(Section('Both forms', 'The checkpoint was in deploy form already, in which the branches can '
                                'no longer be told apart: there is no training form to compare with. Export from the '
                                'checkpoint of the training to see it here.'))
    return Page(config_name, f'Engine report · {meta["engine"]} {meta["precision"]}',
                _facts(config_name, meta, exported.inputs[0].shape), verdicts, sections)


def benchmark_page(rows: Sequence[Row], setting: Mapping[str, str]) -> Page:
    """The page of `rows`: the fastest of each kind of work, then a chart and a table for each."""
    works = list(dict.fromkeys(row.work for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    fastest = [min((row for row in rows if row.work == work), key=lambda row: row.median_ms) for work in works]
    verdicts = [Verdict(f'{row.median_ms:.1f} ms', f'fastest {row.work}', row.model) for row in fastest]
    sections = []
    for work in works:
        done = [row for row in rows if row.work == work]
        latencies = {row.model: Latency(row.median_ms, row.lower_ms, row.upper_ms) for row in done}
        table = Table(
            ('model', 'ms, median', 'quartiles', 'ratio', 'kept for backward, MiB', 'peak, MiB', 'million parameters',
             'GFLOPs'),
            [(row.model, f'{row.median_ms:.1f}', f'{row.lower_ms:.1f} to {row.upper_ms:.1f}',
              f'{row.median_ms / done[0].median_ms:.2f}', figure_text(row.saved_mib, 0), figure_text(row.peak_mib, 0),
              figure_text(row.million_parameters, 2), figure_text(row.gflops, 2)) for row in done],
            'Ratios are to the first model. No weights are loaded.')
        sections.append(Section(work.capitalize(), '', [Chart(latency_chart(latencies, f'Latency, {work}')), table]))
    title = models[0] if len(models) == 1 else f'{len(models)} models side by side'
    return Page(title, 'Benchmark report', dict(date=_now(), **{name.replace('_', ' '): value for name, value
                                                                 in setting.items()}), verdicts, sections)


def engine_latency(exported: Exported, conversion: Conversion | None, rounds: int = 15) -> dict[str, Latency]:
    """Of calls with the image on which the engine was compared: PyTorch's forms and 'engine'.

    One after the other, not interleaved: the threads of one library wait busily for a while after each call
    and would slow the next one's.
    """
    image = exported.inputs[0]
    calls = {'PyTorch, deploy form': partial(exported.reference, image),
             'engine': partial(Engine(exported.path), image.numpy())}
    if conversion is not None:
        trained = network_of(conversion.trained, exported.reference.preprocess)
        calls = {'PyTorch, training form': partial(trained, image), **calls}
    return {name: interleaved_latency({name: call}, rounds)[name] for name, call in calls.items()}


def _form_sections(conversion: Conversion, costs: Costs, cfg: Config) -> tuple[list[Section], list[Verdict]]:
    """Both forms, their errors, images, weights and activations; a verdict if images were compared."""
    trained, deploy = conversion.trained, conversion.deploy
    try:
        pictures, missing = side_by_side(cfg, {'training form': trained, 'deploy form': deploy}), ''
    except UserError as error:
        pictures, missing = SideBySide([], [], []), str(error)
    layers = layer_ranges(trained, deploy, pictures.inputs or [conversion.inputs])
    source = (f'{len(pictures.inputs)} images of the validation set' if pictures.inputs else
              f'random input of {_size(conversion.inputs.shape)}, because there are no images: expect other ranges on '
              'real ones')
    verdicts = []
    if pictures.comparisons:
        differing, total = (sum(getattr(one, name) for one in pictures.comparisons) for name in ('differing', 'total'))
        unit = 'pixels' if hasattr(trained, 'encode_decode') else 'boxes'
        verdicts.append(Verdict(f'{differing:,} of {total:,}', f'{unit} differ',
                                f'predictions of both forms on {len(pictures.comparisons)} validation images'))
    return [_costs_section(conversion, costs), _error_section(conversion), _picture_section(pictures, missing),
            _weight_section(layers), _activation_section(layers, source)], verdicts


def _costs_section(conversion: Conversion, costs: Costs) -> Section:
    latency = costs.latency
    rows = [
        ('parameters (million)', *(f'{count / 1e6:.2f}' for count in costs.parameters),
         _change(*costs.parameters)),
        ('GFLOPs', *(f'{2 * macs / 1e9:.2f}' for macs in costs.macs), _change(*costs.macs)),
        ('latency, branch by branch (ms)', f'{latency["branches"].median_ms:.1f}', '', ''),
        ('latency, as evaluated (ms)', f'{latency["training"].median_ms:.1f}', f'{latency["deploy"].median_ms:.1f}',
         _change(latency['training'].median_ms, latency['deploy'].median_ms))]
    return Section(
        'Both forms',
        f'{costs.blocks} RepVGG blocks were fused. In evaluation the training form fuses its kernels at every call; '
        'branch by branch is what it costs to compute the branches one by one, as other implementations do.',
        [Table(('', 'training form', 'deploy form', 'change'), rows),
         Chart(latency_chart({FORMS[name]: latency[name] for name in FORMS}, 'Latency of both forms'),
               conditions(conversion))])


def _error_section(conversion: Conversion) -> Section:
    return Section(
        'They compute the same',
        'Both forms ran on the same random input. The relative error of an output is the largest difference, divided '
        f'by the largest value. Above {TOLERANCE:g} nothing is written.',
        [Chart(error_chart(conversion.errors, TOLERANCE, 'Relative error of each output'),
               f'Input of {_size(conversion.inputs.shape)}, float32.')])


def _picture_section(pictures: SideBySide, missing: str) -> Section:
    if missing:
        return Section('On real images', f'No images were used. {missing}')
    if not pictures.comparisons:
        return Section('On real images', 'Predictions of segmentors and detectors are drawn, and this is neither.')
    return Section(
        'On real images',
        'Images at even distances of the validation set of the config, through the pipeline and post-processing of the '
        'toolbox; the training form computes branch by branch.', [Gallery(pictures.comparisons, pictures.legend)])


def _weight_section(layers: Sequence[Layer]) -> Section:
    ranges = {layer.name: layer.weights for layer in layers}
    section = Section(
        'Weights, before and after fusing',
        'Each branch as it enters the sum: its kernel times the scale of its BatchNorm. Beside them, in green, the one '
        'kernel that they become. A thin line runs from the smallest to the largest value, the bar from the 1st to the '
        '99th percentile. The axis is logarithmic away from zero.')
    if layers:
        worst = max(layers, key=lambda layer: layer.imbalance)
        table = _range_table(ranges)
        table.head = (*table.head, 'largest / median channel')
        table.rows = [(*row, f'{layer.imbalance:.1f}') for row, layer in zip(table.rows, layers)]
        section.parts = [
            Chart(range_chart(_short(ranges), 'Weight ranges of each block'),
                  f'Most uneven is {worst.name}: the largest value of its largest output channel is '
                  f'{worst.imbalance:.1f} times that of its median channel, which one int8 scale for the whole kernel '
                  'would have to cover.', 64), table]
    return section


def _activation_section(layers: Sequence[Layer], source: str) -> Section:
    ranges = {layer.name: layer.activations for layer in layers if layer.activations}
    section = Section(
        'Activations, before and after fusing',
        f'What each branch gives, and in green what their one convolution gives, before the activation function; on '
        f'{source}. Lines and bars as above.')
    if ranges:
        section.parts = [Chart(range_chart(_short(ranges), 'Activation ranges of each block'), '', 64),
                         _range_table(ranges)]
    return section


def _engine_section(exported: Exported) -> Section:
    meta = exported.meta
    wanted = meta['input']
    size = ' x '.join('any' if side is None else str(side) for side in wanted['shape'])
    rows = [
        ('engine', meta['engine']), ('precision', meta['precision']), ('computed in, here', meta['computed_in']),
        ('input', f'{wanted["name"]}, {wanted["dtype"]} {wanted["layout"]} {size}'),
        ('preprocessing', 'inside' if meta['preprocessing']['inside'] else 'outside'),
        ('outputs', ', '.join(meta['outputs'])), *((f'sha256 of {name}', sha) for name, sha in meta['files'].items())]
    rows += [('non-maximum suppression', meta['nms'])] if 'nms' in meta else []
    errors = {f'{name}, {_size(compared["shape"])}': error
              for compared in meta['compared'] for name, error in compared['errors'].items()}
    graph = sorted(meta['graph'].items(), key=lambda item: -item[1])
    return Section('The engine', '', [
        Table(('', ''), rows),
        Chart(error_chart(errors, meta['tolerance'], 'Relative error of each output of the engine'),
              f'The engine{_before_quantising(meta)} beside PyTorch on the same random input; above the line '
              'nothing is written.'),
        Table(('operator', 'in the graph'), [(name, str(count)) for name, count in graph],
              f'The exported graph: {sum(meta["graph"].values())} operators, {meta["graph"].get("Conv", 0)} of them '
              'convolutions; no Add and no BatchNormalization in a RepVGG block', folded=True)])


def _engine_latency_section(exported: Exported, latencies: Mapping[str, Latency]) -> Section:
    first = next(iter(latencies.values()))
    rows = [(name, f'{found.median_ms:.2f}', f'{found.lower_ms:.2f} to {found.upper_ms:.2f}',
             f'{first.median_ms / found.median_ms:.2f}x') for name, found in latencies.items()]
    return Section('Engine and PyTorch', '', [
        Chart(latency_chart(latencies, 'Latency of the engine and PyTorch')),
        Table(('', 'ms, median', 'quartiles', 'as fast'), rows,
              f'15 calls each with {_size(exported.inputs[0].shape)}, one model after the other, post-processing not '
              f'included; {torch.get_num_threads()} threads in PyTorch, the engine as its library chooses.')])


def _before_quantising(meta: Mapping) -> str:
    return ' before quantising' if 'quantisation' in meta else ''


def _quantisation_section(found: Mapping) -> Section:
    """What the description of an engine says of its quantisation: figures in one table, lists in one each."""
    figures, parts = [], []
    for name, value in found.items():
        rows = value if isinstance(value, list) else []
        if rows and all(isinstance(row, Mapping) for row in rows):
            head = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[_cell(row.get(key, '')) for key in head] for row in rows]
            parts.append(Table([_words(key) for key in head], cells, f'{_words(name)} ({len(rows)})',
                               folded=len(rows) > 12))
        else:
            figures.append((_words(name), _cell(value)))
    return Section('Quantisation', '', ([Table(('', ''), figures)] if figures else []) + parts)


def _error_verdict(errors: Mapping[str, float], tolerance: float = TOLERANCE, words: str = '') -> Verdict:
    worst = max(errors, key=errors.get)
    return Verdict(f'{errors[worst]:.1e}', 'worst relative error',
                   f'on {worst}; {words + ", " if words else ""}at most {tolerance:g} allowed')


def _latency_verdict(costs: Costs) -> Verdict:
    branches, training, deploy = (costs.latency[name].median_ms for name in FORMS)
    return Verdict(f'{branches / deploy:.2f}x', 'as fast as branch by branch',
                   f'{branches:.1f} to {deploy:.1f} ms; against the training form as evaluated '
                   f'{training / deploy:.2f}x')


def _parameter_verdict(costs: Costs) -> Verdict:
    before, after = costs.parameters
    return Verdict(f'{after / 1e6:.2f} M', 'parameters', f'{before / 1e6:.2f} M in training form')


def _facts(config_name: str, meta: Mapping, shape: Sequence[int]) -> dict[str, str]:
    return dict(config=config_name, checkpoint=meta['source'], sha256=meta['source_sha256'],
                architecture=str(meta['arch']), input=_size(shape), date=_now(),
                machine=f'{cpu_name()}, {torch.get_num_threads()} threads',
                versions=', '.join(f'{name} {version}' for name, version in
                                   dict(meta['versions'], python=platform.python_version()).items()))


def _range_table(ranges: Mapping[str, Mapping[str, Range]]) -> Table:
    labels = [*dict.fromkeys(label for found in ranges.values() for label in found if label != FUSED), FUSED]
    rows = [(name, *(f'{one[label].low:.3g} to {one[label].high:.3g}' if label in one else '' for label in labels))
            for name, one in ranges.items()]
    return Table(('block', *labels), rows, 'Smallest and largest values as a table', folded=True)


def _short(ranges: Mapping[str, Mapping[str, Range]]) -> dict:
    """Names without what is common to all up to a dot, for the axis of a chart."""
    names = [name.split('.') for name in ranges]
    common = 0
    while len(names) > 1 and all(len(name) > common + 1 and name[common] == names[0][common] for name in names):
        common += 1
    return {'.'.join(name[common:]): found for name, found in zip(names, ranges.values())}


def _change(before: float, after: float) -> str:
    return f'{100 * (after / before - 1):+.1f} %'.replace('-', '\N{MINUS SIGN}')


def _words(name: object) -> str:
    return str(name).replace('_', ' ')


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_cell, value))
    return str(value)


def _size(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


def _now() -> str:
    return datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %z')
