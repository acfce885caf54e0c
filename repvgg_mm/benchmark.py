"""Training form, deploy form and other configs side by side: time, memory, parameters and FLOPs."""

from __future__ import annotations

import json
import platform
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .convert import fusible_or_fused, whole_model_convert
from .errors import UserError
from .measure import count_macs, count_parameters, interleaved_latency
from .raw_outputs import raw_outputs
from .runner import build_model, config_dicts, replace_sync_bn

WORK = ('forward', 'norm_eval step', 'training step')


@dataclass
class Row:
    """One model doing one kind of work; times in milliseconds, median and quartiles of interleaved calls."""

    model: str
    work: str
    median_ms: float
    lower_ms: float
    upper_ms: float
    saved_mib: float | None  # what a step keeps for its backward pass, parameters not counted
    million_parameters: float
    gflops: float


def conditions(inputs: Tensor, rounds: int) -> dict[str, str]:
    """What a time depends on, to stand beside it."""
    device = torch.cuda.get_device_name() if inputs.is_cuda else platform.processor() or platform.machine()
    return dict(
        device=f'{inputs.device.type} ({device})', threads=str(torch.get_num_threads()), dtype=str(inputs.dtype),
        memory_format='channels_last' if inputs.is_contiguous(memory_format=torch.channels_last) else 'contiguous',
        shape=str(tuple(inputs.shape)), torch=torch.__version__, rounds=str(rounds))


def build_forms(paths: Iterable[str]) -> dict[str, nn.Module]:
    """Models of configs by name, without weights; a model with fusible blocks in both forms.

    SyncBN becomes BN: a benchmark is one process.
    """
    models: dict[str, nn.Module] = {}
    for path in paths:
        cfg = Config.fromfile(path)
        for part in config_dicts(cfg._cfg_dict):
            part.pop('init_cfg', None)
        replace_sync_bn(cfg)
        model = build_model(cfg).eval()
        name = Path(path).stem
        if fusible_or_fused(model):
            models[f'{name}, deploy form'] = whole_model_convert(model)
            name = f'{name}, training form'
        models[name] = model
    return models


def benchmark(models: dict[str, nn.Module], inputs: Tensor, works: Iterable[str], rounds: int) -> list[Row]:
    """Every model does each kind of work, interleaved; a step is forward and backward of the mean of all outputs.

    In a norm_eval step every norm stays on running statistics.

    Raises:
        UserError: a model cannot take the input.
    """
    models = {name: model.to(inputs.device, inputs.dtype) for name, model in models.items()}
    if inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
        models = {name: model.to(memory_format=torch.channels_last) for name, model in models.items()}
    rows = []
    for work in track_iter_progress(list(works)):
        kept = {}
        call = _forward if work == 'forward' else _step
        for name, model in models.items():
            model.train(work == 'training step')
            try:
                call(model, inputs)
            except (RuntimeError, ValueError) as error:
                raise UserError(f'Every model gets the same input, and {name} cannot do a {work} with '
                                f'{tuple(inputs.shape)}: {str(error).splitlines()[0]}. Choose --batch, --shape, '
                                '--dtype or --work that it can.') from None
            kept[name] = None if work == 'forward' else saved_bytes(model, inputs) / 2**20
        times = interleaved_latency({name: partial(call, model, inputs) for name, model in models.items()}, rounds)
        rows += [Row(name, work, *times[name], kept[name], count_parameters(model) / 1e6,
                     2 * count_macs(model, inputs) / 1e9) for name, model in models.items()]
    return rows


def saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        out = raw_outputs(model, inputs)
    del out
    return sum(kept.values())


def table(rows: list[Row]) -> str:
    """Ratios are to the first model that did the same work."""
    lines = ['| model | work | ms, median (quartiles) | ratio | kept for backward, MiB | million parameters | GFLOPs |',
             '|---|---|---|---|---|---|---|']
    for row in rows:
        first = next(other for other in rows if other.work == row.work)
        kept = '' if row.saved_mib is None else f'{row.saved_mib:.0f}'
        lines.append(
            f'| {row.model} | {row.work} | {row.median_ms:.1f} ({row.lower_ms:.1f} to {row.upper_ms:.1f}) | '
            f'{row.median_ms / first.median_ms:.2f} | {kept} | {row.million_parameters:.2f} | {row.gflops:.2f} |')
    return '\n'.join(lines)


def write_json(path: Path, rows: list[Row], setting: dict[str, str]) -> None:
    path.write_text(json.dumps(dict(conditions=setting, rows=[asdict(row) for row in rows]), indent=2) + '\n')


def draw(path: Path, rows: list[Row], setting: dict[str, str]) -> None:
    """A panel for each kind of work, a bar for each model with the quartiles of its time."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    works = list(dict.fromkeys(row.work for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    figure, axes = plt.subplots(len(works), figsize=(9, (0.45 * len(models) + 0.9) * len(works) + 0.5), squeeze=False)
    for axis, work in zip(axes[:, 0], works):
        done = [row for row in rows if row.work == work]
        spread = [[row.median_ms - row.lower_ms for row in done], [row.upper_ms - row.median_ms for row in done]]
        bars = axis.barh([row.model for row in done], [row.median_ms for row in done], xerr=spread, capsize=3,
                         color=['tab:green' if 'deploy' in row.model else 'tab:blue' for row in done])
        axis.bar_label(bars, [f'{row.median_ms:.0f} ms' for row in done], padding=8)
        axis.set(title=work, xlim=(0, 1.25 * max(row.upper_ms for row in done)))
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel('ms, median and quartiles')
    made_with = ', '.join(f'{key} {value}' for key, value in setting.items())
    figure.supxlabel(textwrap.fill(made_with, 120), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _forward(model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        raw_outputs(model, inputs)


def _step(model: nn.Module, inputs: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        means = [tensor.mean() for tensor in _tensors(raw_outputs(model, inputs))]
        if not any(mean.requires_grad for mean in means):
            raise UserError('A step needs outputs with gradients, and the model has none. Measure --work forward.')
        sum(means).backward()


def _tensors(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, dict):
        out = out.values()
    return [tensor for part in out for tensor in _tensors(part)]
