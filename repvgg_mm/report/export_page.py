"""The page of an export: the engine, and both forms of the model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from mmengine.config import Config

from ..convert.measure import Latency, interleaved_latency
from ..deploy.costs import measure_costs
from ..engine.description import Description, Quantisation
from ..engine.engine import Engine
from ..export.export import Exported
from ..export.networks import network_of
from .charts import error_chart, latency_chart
from .conversion_page import parameter_verdict, sections_of_both_forms
from .facts import error_verdict, facts_of, size_text
from .page import Chart, Page, Section, Table, Verdict

LONGEST_OPEN_TABLE = 12  # rows


def export_page(exported: Exported, cfg: Config, config_name: str) -> Page:
    """With the sections of a conversion if the checkpoint was in training form."""
    description, conversion = exported.description, exported.conversion
    latencies = engine_latency(exported)

    verdicts = [
        error_verdict(
            _errors(description), description.tolerance, f'engine against PyTorch{_before_quantising(description)}'),
        _engine_verdict(latencies),
    ]
    sections = [_engine_section(description), _latency_section(exported, latencies)]

    if description.quantisation is not None:
        verdicts.insert(0, _quantisation_verdict(description.quantisation))
        sections.append(_quantisation_section(description.quantisation))

    if conversion is not None:
        costs = measure_costs(conversion)
        forms, more = sections_of_both_forms(conversion, costs, cfg)
        verdicts += [parameter_verdict(costs), *more]
        sections += forms
    else:
        sections.append(Section(
            'Both forms',
            'The checkpoint was in deploy form already, in which the branches can '
            'no longer be told apart: there is no training form to compare with. Export from the '
            'checkpoint of the training to see it here.'))

    facts = facts_of(
        config_name, description.source, description.source_sha256, description.arch, description.versions,
        exported.inputs[0].shape)
    kind = f'Engine report · {description.engine} {description.precision}'
    return Page(config_name, kind, facts, verdicts, sections)


def engine_latency(exported: Exported, rounds: int = 15) -> dict[str, Latency]:
    """Of calls with the image on which the engine was compared: PyTorch's forms and 'engine'.

    One after the other, not interleaved: the threads of one library wait busily for a while after each call
    and would slow the next one's.
    """
    image = exported.inputs[0]
    calls = {}
    if exported.conversion is not None:
        trained = network_of(exported.conversion.trained, exported.reference.preprocess)
        calls['PyTorch, training form'] = partial(trained, image)
    calls['PyTorch, deploy form'] = partial(exported.reference, image)
    calls['engine'] = partial(Engine(exported.path), image.numpy())

    latencies = {}
    for name, call in calls.items():
        latencies |= interleaved_latency({name: call}, rounds)
    return latencies


def _engine_verdict(latencies: Mapping[str, Latency]) -> Verdict:
    engine, torch_form = latencies['engine'].median_ms, latencies['PyTorch, deploy form'].median_ms
    return Verdict(
        f'{engine:.1f} ms',
        'a call of the engine',
        f'{torch_form / engine:.2f}x as fast as the deploy form in PyTorch ({torch_form:.1f} ms)')


def _quantisation_verdict(found: Quantisation) -> Verdict:
    return Verdict(
        f'{found.int8:.2f}',
        f'{found.metric} in int8',
        f'{found.float32:.2f} in float32, on the validation set')


def _engine_section(description: Description) -> Section:
    wanted = description.input
    sizes = ['any' if side is None else str(side) for side in wanted.shape]
    rows = [
        ('engine', description.engine),
        ('precision', description.precision),
        ('computed in, here', description.computed_in),
        ('input', f'{wanted.name}, {wanted.dtype} {wanted.layout} {" x ".join(sizes)}'),
        ('preprocessing', 'inside' if description.preprocessing.inside else 'outside'),
        ('outputs', ', '.join(description.outputs)),
    ]
    for name, sha256 in description.files.items():
        rows.append((f'sha256 of {name}', sha256))
    if description.nms is not None:
        rows.append(('non-maximum suppression', description.nms))

    chart = error_chart(_errors(description), description.tolerance, 'Relative error of each output of the engine')
    caption = (
        f'The engine{_before_quantising(description)} beside PyTorch on the same random input; above the line '
        'nothing is written.')
    return Section('The engine', '', [Table(('', ''), rows), Chart(chart, caption), _graph_table(description.graph)])


def _graph_table(graph: Mapping[str, int]) -> Table:
    """Operators and how many there are of each, the most frequent first."""
    ordered = sorted(graph.items(), key=lambda item: -item[1])
    rows = [(name, str(count)) for name, count in ordered]
    caption = (
        f'The exported graph: {sum(graph.values())} operators, {graph.get("Conv", 0)} of them '
        'convolutions; no Add and no BatchNormalization in a RepVGG block')
    return Table(('operator', 'in the graph'), rows, caption, folded=True)


def _latency_section(exported: Exported, latencies: Mapping[str, Latency]) -> Section:
    slowest = next(iter(latencies.values()))  # the first, with which the others are compared
    rows = []
    for name, found in latencies.items():
        quartiles = f'{found.lower_ms:.2f} to {found.upper_ms:.2f}'
        rows.append((name, f'{found.median_ms:.2f}', quartiles, f'{slowest.median_ms / found.median_ms:.2f}x'))

    caption = (
        f'15 calls each with {size_text(exported.inputs[0].shape)}, one model after the other, post-processing not '
        f'included; {torch.get_num_threads()} threads in PyTorch, the engine as its library chooses.')
    chart = Chart(latency_chart(latencies, 'Latency of the engine and PyTorch'))
    return Section('Engine and PyTorch', '', [chart, Table(('', 'ms, median', 'quartiles', 'as fast'), rows, caption)])


def _quantisation_section(found: Quantisation) -> Section:
    """Figures in one table, the attempts and the layers in one each."""
    figures, parts = [], []
    for name, value in asdict(found).items():
        if isinstance(value, list) and value:
            parts.append(_list_table(name, value))
        else:
            figures.append((_words(name), _cell(value)))
    return Section('Quantisation', '', [Table(('', ''), figures), *parts])


def _list_table(name: str, rows: Sequence[Mapping]) -> Table:
    keys: dict[str, None] = {}
    for row in rows:
        keys |= dict.fromkeys(row)

    cells = []
    for row in rows:
        cells.append([_cell(row.get(key, '')) for key in keys])
    head = [_words(key) for key in keys]
    return Table(head, cells, f'{_words(name)} ({len(rows)})', folded=len(rows) > LONGEST_OPEN_TABLE)


def _errors(description: Description) -> dict[str, float]:
    """Of each output, on each input."""
    errors = {}
    for comparison in description.compared:
        for name, error in comparison.errors.items():
            errors[f'{name}, {size_text(comparison.shape)}'] = error
    return errors


def _before_quantising(description: Description) -> str:
    return '' if description.quantisation is None else ' before quantising'


def _words(name: str) -> str:
    return name.replace('_', ' ')


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_cell, value))
    return str(value)
