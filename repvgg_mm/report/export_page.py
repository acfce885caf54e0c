"""The page of an export: what the engine predicts, what it costs, and both forms of the model that it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..block import branch_by_branch
from ..convert.measure import ROUNDS, Latency, RoundProgress, interleaved_latency
from ..deploy.costs import measure_costs
from ..engine.description import Description
from ..engine.engine import Engine
from ..engine.model import EngineModel
from ..errors import UserError
from ..export.export import Exported
from ..export.networks import network_of
from .charts import error_chart, latency_chart
from .conversion_page import parameter_verdict, picture_section, picture_verdict, sections_of_both_forms
from .facts import error_verdict, facts_of, model_title, size_text
from .fewer_bits import half_section, half_verdict, quantisation_section, quantisation_verdict
from .mistakes_section import look_for_mistakes
from .page import Chart, Page, Section, Table, Verdict
from .side_by_side import SideBySide, side_by_side

ENGINE, DEPLOY = 'engine', 'deploy form in PyTorch'
TRAINING, BRANCHES = 'training form in PyTorch, as evaluated', 'training form in PyTorch, branch by branch'
PAUSE = 0.1  # seconds before each timed call
Progress = Callable[[str], None]


def export_page(
    exported: Exported,
    cfg: Config,
    config_name: str,
    *,
    latency_seconds: float = 60.0,
    progress: Progress = lambda step: None,
) -> Page:
    """With the sections of a conversion if the checkpoint was in training form.

    Args:
        latency_seconds: as the limit of `engine_latency`; 0 leaves times out.
    """
    description, conversion = exported.description, exported.conversion
    model = exported.reference.model
    verdicts, sections = [], []

    found, half = description.quantisation, description.half
    if found is not None:
        verdicts.append(quantisation_verdict(found, description.precision))
    if half is not None and half.metric is not None:
        verdicts.append(half_verdict(half))

    progress('Predicting images with the engine and the deploy form')
    pictures, missing = _predictions(exported, cfg)
    sections.append(picture_section(
        'The engine on real images', pictures, missing,
        f'the deploy form is computed by PyTorch in float32, the engine is {exported.path.name} in '
        f'{description.precision}'))
    if pictures.comparisons:
        unit = 'pixels' if description.task == 'segmentation' else 'boxes'
        verdicts.append(picture_verdict(pictures, unit, 'between engine and deploy form in PyTorch'))
        engine = EngineModel(cfg, Engine(exported.path, threads=torch.get_num_threads()))
        section, verdict = look_for_mistakes(cfg, engine, f'by the engine in {description.precision}', progress)
        sections.append(section)
        verdicts += verdict

    if found is None:  # else it would be that of an engine that is not written
        verdicts.append(error_verdict(_errors(description), description.tolerance, 'engine against PyTorch'))
    else:
        sections.append(quantisation_section(found, description.precision, cfg))
    if half is not None:
        sections.append(half_section(half, cfg))
    sections.append(_engine_section(description))

    if latency_seconds > 0:
        latencies, rounds = engine_latency(exported, limit=latency_seconds, progress=progress)
        verdicts.append(_engine_verdict(latencies))
        sections.append(_latency_section(exported, latencies, rounds))

    if conversion is not None:
        progress('Comparing both forms in PyTorch')
        costs = measure_costs(conversion, latency_seconds=0)
        forms, _ = sections_of_both_forms(conversion, costs, cfg)
        verdicts.append(parameter_verdict(costs))
        sections += forms
    else:
        sections.append(Section(
            'Both forms',
            'The checkpoint was in deploy form already, in which the branches can '
            'no longer be told apart: there is no training form to compare with. Export from the '
            'checkpoint of the training to see it here.'))

    facts = facts_of(
        config_name, description.source, description.source_sha256, description.arch, description.versions,
        exported.inputs[0].shape, cfg)
    kind = f'Engine report · {description.engine} {description.precision}'
    title = model_title(model, description.arch)
    return Page(f'{title}, {config_name}', kind, facts, verdicts, sections)


def _predictions(exported: Exported, cfg: Config) -> tuple[SideBySide, str]:
    """Of the deploy form and of the engine on images of the validation set, or why there are none."""
    try:
        engine = EngineModel(cfg, Engine(exported.path, threads=torch.get_num_threads()))
        models = {'deploy form, PyTorch': exported.reference.model, f'engine, {exported.description.precision}': engine}
        return side_by_side(cfg, models), ''
    except UserError as error:
        return SideBySide([], [], [], 0), str(error)


def engine_latency(
    exported: Exported, rounds: int = ROUNDS, *, limit: float = math.inf, progress: Progress = lambda step: None
) -> tuple[dict[str, Latency], int]:
    """Of calls with the image on which the engine was compared, and the number of rounds in which each was called.

    Interleaved, with a pause of `PAUSE` before each call: the threads of one library wait busily for a while after a
    call and would slow the next one's. All have as many threads as torch.

    Args:
        limit: seconds after which no other round begins.
    """
    image = exported.inputs[0]
    engine = Engine(exported.path, threads=torch.get_num_threads())
    calls = {DEPLOY: partial(exported.reference, image), ENGINE: partial(engine, image.numpy())}
    if exported.conversion is not None:
        nms = exported.description.nms == 'inside'
        trained = network_of(exported.conversion.trained, exported.reference.preprocess, nms=nms)
        calls[TRAINING] = partial(trained, image)
        calls[BRANCHES] = partial(_by_branch, trained, image)

    progress('Measuring latency')
    after_round = RoundProgress(rounds, progress)
    latencies = interleaved_latency(calls, rounds, pause=PAUSE, limit=limit, after_round=after_round)
    return latencies, after_round.done


def _by_branch(network: nn.Module, image: Tensor) -> None:
    with branch_by_branch(network.model):
        network(image)


def _engine_verdict(latencies: Mapping[str, Latency]) -> Verdict:
    engine, torch_form = latencies[ENGINE].median_ms, latencies[DEPLOY].median_ms
    return Verdict(
        f'{engine:.1f} ms',
        'a call of the engine',
        f'{torch_form / engine:.2f}x as fast as the deploy form in PyTorch ({torch_form:.1f} ms)',
        good=engine <= torch_form)


def _engine_section(description: Description) -> Section:
    wanted = description.input
    sizes = ['any' if side is None else str(side) for side in wanted.shape]
    quantised = '' if description.quantisation is None else ', of what is not quantised'
    rows = [
        ('engine', description.engine),
        ('precision', description.precision),
        ('floating-point numbers', f'{description.computed_in} on the machine of this page{quantised}'),
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
        f'The engine{_before_quantising(description)} beside the deploy form in PyTorch, on the same random input; '
        'above the line nothing is written.')
    return Section('The engine', '', [Table(('', ''), rows), Chart(chart, caption), _graph_table(description.graph)])


def _graph_table(graph: Mapping[str, int]) -> Table:
    """Operators and how many there are of each, the most frequent first."""
    ordered = sorted(graph.items(), key=lambda item: -item[1])
    rows = [(name, str(count)) for name, count in ordered]
    caption = (
        f'The exported graph: {sum(graph.values())} operators, {graph.get("Conv", 0)} of them '
        'convolutions; no Add and no BatchNormalization in a RepVGG block')
    return Table(('operator', 'in the graph'), rows, caption, folded=True)


def _latency_section(exported: Exported, latencies: Mapping[str, Latency], rounds: int) -> Section:
    first = latencies[DEPLOY]
    rows = []
    for name, found in latencies.items():
        quartiles = f'{found.lower_ms:.1f} to {found.upper_ms:.1f}'
        rows.append((name, f'{found.median_ms:.1f}', quartiles, f'{first.median_ms / found.median_ms:.2f}x'))

    caption = (
        f'{rounds} rounds with {size_text(exported.inputs[0].shape)}, in each of which every one is called once, after '
        f'a pause of {PAUSE:g} s, so that the threads of one library do not slow the next; post-processing not '
        f'included; {torch.get_num_threads()} threads each.')
    chart = Chart(latency_chart(latencies, 'Latency of the engine and PyTorch'))
    head = ('', 'ms, median', 'quartiles', 'as fast as the deploy form')
    return Section('Latency', '', [chart, Table(head, rows, caption)])


def _errors(description: Description) -> dict[str, float]:
    """Of each output, on each input."""
    errors = {}
    for comparison in description.compared:
        for name, error in comparison.errors.items():
            errors[f'{name}, {size_text(comparison.shape)}'] = error
    return errors


def _before_quantising(description: Description) -> str:
    return '' if description.quantisation is None else ' before quantising'
