"""Training form, deploy form, other configs and engines side by side: time, memory, parameters and FLOPs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..convert.blocks import fusible_or_fused, has_branches
from ..convert.measure import Latency, LiveBytes, count_macs, count_parameters, cpu_name, interleaved_latency
from ..convert.raw_outputs import raw_outputs
from ..convert.whole import whole_model_convert
from ..engine.engine import SUFFIXES, Engine, optional
from ..errors import UserError
from ..files.atomic import atomic_path
from ..openmmlab.config import config_dicts, import_toolbox, read_config
from ..openmmlab.model import build_model, replace_sync_bn
from .charts import latency_bars

WORK = ('forward', 'norm_eval step', 'training step')


@dataclass
class Row:
    """One model doing one kind of work; times in milliseconds, median and quartiles of interleaved calls."""

    model: str
    work: str
    median_ms: float
    lower_ms: float
    upper_ms: float
    saved_mib: float | None = None  # what a step keeps for its backward pass, parameters not counted
    peak_mib: float | None = None  # at most alive during the work, above what was there before; of an engine unknown
    million_parameters: float | None = None
    gflops: float | None = None


@dataclass
class Setting:
    """How models are called: `amp` is a type for torch.autocast, None for none; `compile` is torch.compile."""

    inputs: Tensor  # N, C, H, W
    rounds: int = 15
    amp: torch.dtype | None = None
    compile: bool = False

    def conditions(self) -> dict[str, str]:
        """What a time depends on, to stand beside it."""
        inputs = self.inputs
        device = torch.cuda.get_device_name() if inputs.is_cuda else cpu_name()
        last = inputs.is_contiguous(memory_format=torch.channels_last)
        return dict(
            device=f'{inputs.device.type} ({device})', threads=str(torch.get_num_threads()),
            dtype=f'{inputs.dtype}'.removeprefix('torch.'), amp=f'{self.amp}'.removeprefix('torch.'),
            compile=str(self.compile), memory_format='channels_last' if last else 'contiguous',
            shape=str(tuple(inputs.shape)), torch=torch.__version__, rounds=str(self.rounds))


def build_forms(paths: Sequence[str]) -> dict[str, nn.Module]:
    """Models of configs by name, without weights; one with blocks in training form in both forms.

    SyncBN becomes BN: a benchmark is one process.

    Raises:
        UserError: a path is no config, or its toolbox is not installed.
    """
    models: dict[str, nn.Module] = {}
    stems = [Path(path).stem for path in paths]
    for path, stem in zip(paths, stems):
        cfg = read_config(path)
        import_toolbox(cfg)
        for part in config_dicts(cfg._cfg_dict):
            part.pop('init_cfg', None)
        replace_sync_bn(cfg)
        model = build_model(cfg).eval()
        name = stem if stems.count(stem) == 1 else path
        if has_branches(model):
            models[f'{name}, deploy form'] = whole_model_convert(model)
            name = f'{name}, training form'
        elif fusible_or_fused(model):
            name = f'{name}, deploy form'
        models[name] = model
    return models


def load_engines(paths: Iterable[str]) -> dict[str, Engine]:
    """Engines by name, with as many threads as torch has."""
    engines = [Engine(path, threads=torch.get_num_threads()) for path in paths]
    return {f'{SUFFIXES[engine.path.suffix]} {engine.meta["precision"]}, {engine.path}': engine for engine in engines}


def engine_versions(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Of the libraries that run them."""
    libraries = sorted({SUFFIXES[engine.path.suffix] for engine in engines.values()})
    return {library: optional(library).__version__ for library in libraries}


def engine_call(engine: Engine, inputs: Tensor) -> Callable[[], object]:
    """Run `engine` on images of the shape of `inputs` (N, C, H, W), as it takes them.

    Raises:
        UserError: it does not take that shape, or `inputs` are on a GPU.
    """
    if inputs.is_cuda:
        raise UserError(f'Engines run on the CPU here, and the models of this benchmark on {inputs.device}. Add '
                        '--device cpu, or measure the engines by themselves.')
    images = inputs.float()
    if engine.meta['input']['layout'] == 'NHWC':
        images = torch.randint(256, images.movedim(1, 3).shape, dtype=torch.uint8)
    images = images.numpy(force=True)
    engine(images)
    return partial(engine, images)


def benchmark(
    models: dict[str, nn.Module], setting: Setting, works: Iterable[str], engines: Mapping[str, Engine] | None = None
) -> list[Row]:
    """Every model does each kind of work, interleaved; a step is forward and backward of the mean of all outputs.

    In a norm_eval step every norm stays on running statistics. Engines only do forward calls, among the models.

    Raises:
        UserError: a model or engine cannot take the input, there is no compiled step here, or engines have no work.
    """
    inputs, works, engines = setting.inputs, list(works), engines or {}
    if engines and 'forward' not in works:
        raise UserError(f'Engines only do forward calls, and --work is {", ".join(works)}. Add forward to --work, or '
                        'leave the engines out.')
    if setting.compile and not inputs.is_cuda and works != ['forward']:
        raise UserError('--compile measures steps on a GPU only, where torch compiles them reliably, and this is '
                        f'{inputs.device}. Measure --work forward, or leave --compile out.')
    last = inputs.is_contiguous(memory_format=torch.channels_last)
    models = {name: model.to(inputs.device, inputs.dtype, memory_format=torch.channels_last if last else
                             torch.preserve_format) for name, model in models.items()}
    rows = []
    for work in track_iter_progress(works):
        calls, memory = {}, {}
        for name, model in models.items():
            model.train(work == 'training step')
            run = torch.compile(partial(raw_outputs, model)) if setting.compile else partial(raw_outputs, model)
            calls[name] = partial(_forward if work == 'forward' else _step, run, model, setting)
            try:
                calls[name]()
                memory[name] = peak_bytes(model, calls[name]) / 2**20
            except (RuntimeError, ValueError) as error:
                raise UserError(f'Every model gets the same input, and {name} cannot do a {work} with '
                                f'{tuple(inputs.shape)}: {str(error).splitlines()[0]}. Choose --batch, --shape, '
                                '--dtype or --work that it can.') from None
        if work == 'forward':
            calls |= {name: engine_call(engine, inputs) for name, engine in engines.items()}
        times = interleaved_latency(calls, setting.rounds)
        rows += [Row(name, work, *times[name],
                     None if work == 'forward' else saved_bytes(model, inputs, setting.amp) / 2**20, memory[name],
                     count_parameters(model) / 1e6, 2 * count_macs(model, inputs) / 1e9)
                 for name, model in models.items()]
        rows += [Row(name, work, *times[name]) for name in engines if name in calls]
    return rows


def peak_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once during a second `call`, above those alive before it."""
    if next(model.parameters()).is_cuda:
        model.zero_grad(set_to_none=True)  # gradients of a step are made by it
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes(model) as live:
        call()
    return live.peak - live.start


def saved_bytes(model: nn.Module, inputs: Tensor, amp: torch.dtype | None = None) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), _autocast(inputs, amp), saved_tensors_hooks(keep, lambda tensor: tensor):
        out = raw_outputs(model, inputs)
    del out
    return sum(kept.values())


def table(rows: list[Row]) -> str:
    """Ratios are to the first model that did the same work."""
    heads = ('model', 'work', 'ms, median (quartiles)', 'ratio', 'kept for backward, MiB', 'peak, MiB',
             'million parameters', 'GFLOPs')
    cells = [heads, ('---',) * len(heads)]
    for row in rows:
        first = next(other for other in rows if other.work == row.work)
        cells.append((
            row.model, row.work, f'{row.median_ms:.1f} ({row.lower_ms:.1f} to {row.upper_ms:.1f})',
            f'{row.median_ms / first.median_ms:.2f}', figure_text(row.saved_mib, 0), figure_text(row.peak_mib, 0),
            figure_text(row.million_parameters, 2), figure_text(row.gflops, 2)))
    lines = [f'| {" | ".join(row)} |' for row in cells]
    return '\n'.join(lines)


def figure_text(value: float | None, digits: int) -> str:
    """Nothing for what is not known, such as the parameters of an engine."""
    return '' if value is None else f'{value:.{digits}f}'


def write_json(path: Path, rows: list[Row], setting: dict[str, str]) -> None:
    """`rows` as dicts of `Row`'s fields beside what they depend on; UserError if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(dict(conditions=setting, rows=[asdict(row) for row in rows]), indent=2) + '\n')


def draw(path: Path, rows: list[Row], setting: dict[str, str]) -> None:
    """A panel for each kind of work, a bar for each model with the quartiles of its time; format by the suffix.

    Raises:
        UserError: it cannot be written.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    works = list(dict.fromkeys(row.work for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    figure, axes = plt.subplots(len(works), figsize=(9, (0.45 * len(models) + 0.9) * len(works) + 0.5), squeeze=False)
    for axis, work in zip(axes[:, 0], works):
        done = [row for row in rows if row.work == work]
        latency_bars(axis, {row.model: Latency(row.median_ms, row.lower_ms, row.upper_ms) for row in done},
                     [_colour(row) for row in done], digits=1)
        axis.set_title(work)
    axes[-1, 0].set_xlabel('ms, median and quartiles')
    made_with = ', '.join(f'{key} {value}' for key, value in setting.items())
    figure.supxlabel(textwrap.fill(made_with, 120), fontsize=8)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:].lower())
    plt.close(figure)


def _colour(row: Row) -> str:
    return 'tab:orange' if row.gflops is None else 'tab:green' if 'deploy' in row.model else 'tab:blue'


def _forward(run: Callable, model: nn.Module, setting: Setting) -> None:
    with torch.no_grad(), _autocast(setting.inputs, setting.amp):
        run(setting.inputs)


def _step(run: Callable, model: nn.Module, setting: Setting) -> None:
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        with _autocast(setting.inputs, setting.amp):
            means = [tensor.float().mean() for tensor in _tensors(run(setting.inputs))]
        if not any(mean.requires_grad for mean in means):
            raise UserError('A step needs outputs with gradients, and the model has none. Measure --work forward.')
        sum(means).backward()


def _autocast(inputs: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(inputs.device.type, dtype, enabled=dtype is not None)


def _tensors(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, dict):
        out = out.values()
    return [tensor for part in out for tensor in _tensors(part)]
