"""Training form, deploy form, other configs and engines side by side: time, memory, parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..convert.blocks import fusible_or_fused, has_branches
from ..convert.measure import LiveBytes, count_macs, count_parameters, cpu_name, interleaved_latency
from ..convert.raw_outputs import WAYS, way_of
from ..convert.whole import whole_model_convert
from ..engine.engine import Engine, optional
from ..errors import UserError, reason
from ..openmmlab.config import config_dicts, import_toolbox, read_config
from ..openmmlab.model import build_model, replace_sync_bn

PAUSE = 0.1  # seconds before a call, where engines are among the models: threads of other libraries go to sleep
WORK = ('forward', 'norm_eval step', 'training step')


@dataclass(frozen=True)
class Row:
    """One model doing one kind of work; times in milliseconds, median and quartiles of interleaved calls."""

    model: str
    work: str
    median_ms: float
    lower_ms: float
    upper_ms: float
    saved_mib: float | None = None  # what a step keeps for its backward pass, parameters not counted
    peak_mib: float | None = None   # at most alive during the work, above what was there before; of an engine unknown
    million_parameters: float | None = None
    gflops: float | None = None


@dataclass(frozen=True)
class Setting:
    """How models are called: `amp` is a type for torch.autocast, None for none; `compile` is torch.compile."""

    inputs: Tensor  # N, C, H, W
    rounds: int = 15
    amp: torch.dtype | None = None
    compile: bool = False

    @property
    def channels_last(self) -> bool:
        return self.inputs.is_contiguous(memory_format=torch.channels_last)

    def conditions(self) -> dict[str, str]:
        """What a time depends on, to stand beside it."""
        device = torch.cuda.get_device_name() if self.inputs.is_cuda else cpu_name()
        return dict(
            device=f'{self.inputs.device.type} ({device})',
            threads=str(torch.get_num_threads()),
            dtype=str(self.inputs.dtype).removeprefix('torch.'),
            amp=str(self.amp).removeprefix('torch.'),
            compile=str(self.compile),
            memory_format='channels_last' if self.channels_last else 'contiguous',
            shape=str(tuple(self.inputs.shape)),
            torch=torch.__version__,
            rounds=str(self.rounds))


def build_forms(paths: Sequence[str]) -> dict[str, nn.Module]:
    """Models of configs by name, without weights; one with blocks in training form in both forms.

    SyncBN becomes BN: a benchmark is one process.

    Raises:
        UserError: a path is no config, or its toolbox is not installed.
    """
    models: dict[str, nn.Module] = {}
    stems = [Path(path).stem for path in paths]
    for path, stem in zip(paths, stems):
        model = _build(path)
        name = stem if stems.count(stem) == 1 else path
        if has_branches(model):
            models[f'{name}, deploy form'] = whole_model_convert(model)
            models[f'{name}, training form'] = model
        elif fusible_or_fused(model):
            models[f'{name}, deploy form'] = model
        else:
            models[name] = model
    return models


def _build(path: str) -> nn.Module:
    cfg = read_config(path)
    import_toolbox(cfg)
    for part in config_dicts(cfg._cfg_dict):
        part.pop('init_cfg', None)  # no weights are loaded
    replace_sync_bn(cfg)
    model = build_model(cfg)
    model.eval()
    return model


def load_engines(paths: Iterable[str], device: str | None = None) -> dict[str, Engine]:
    """Engines by name, on `device`, with as many threads as torch has."""
    engines = {}
    for path in paths:
        engine = Engine(path, device=device, threads=torch.get_num_threads())
        place = '' if engine.device == 'cpu' else f' on {engine.device}'
        engines[f'{engine.library} {engine.description.precision}{place}, {engine.path}'] = engine
    return engines


def engine_versions(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Of the libraries that run them."""
    libraries = {engine.library for engine in engines.values()}
    return {library: optional(library).__version__ for library in sorted(libraries)}


def _engine_call(engine: Engine, inputs: Tensor) -> Callable[[], object]:
    """Run `engine` on images of the shape of `inputs` (N, C, H, W), as it takes them, in the CPU's memory.

    Raises:
        UserError: it does not take that shape, or runs on the CPU and `inputs` are on a GPU.
    """
    if inputs.is_cuda and engine.device == 'cpu':
        raise UserError(
            f'A benchmark runs on one device, and {engine.path} runs on the CPU, the models on {inputs.device}. Give '
            '--device, cpu or cuda.')

    images = inputs.float()
    if engine.description.input.layout == 'NHWC':
        images = torch.randint(256, images.movedim(1, 3).shape, dtype=torch.uint8)
    images = images.numpy(force=True)
    engine(images)  # refuses them now rather than among the timed calls
    return partial(engine, images)


def benchmark(
    models: Mapping[str, nn.Module],
    setting: Setting,
    works: Iterable[str],
    engines: Mapping[str, Engine] | None = None,
) -> list[Row]:
    """Every model does each kind of work, interleaved; a step is forward and backward of the mean of all outputs.

    In a norm_eval step every norm stays on running statistics. Engines only do forward calls, among the models.

    Raises:
        UserError: a model or engine cannot take the input, there is no compiled step here, or engines have no work.
    """
    works, engines = list(works), engines or {}
    _check_works(works, setting, engines)

    inputs = setting.inputs
    memory_format = torch.channels_last if setting.channels_last else torch.preserve_format
    for model in models.values():
        model.to(inputs.device, inputs.dtype, memory_format=memory_format)

    rows = []
    for work in track_iter_progress(works):
        rows += _do(work, models, setting, engines if work == 'forward' else {})
    return rows


def _check_works(works: Sequence[str], setting: Setting, engines: Mapping[str, Engine]) -> None:
    if engines and 'forward' not in works:
        raise UserError(
            f'Engines only do forward calls, and --work is {", ".join(works)}. Add forward to --work, or '
            'leave the engines out.')
    device = setting.inputs.device
    if setting.compile and device.type != 'cuda' and works != ['forward']:
        raise UserError(
            '--compile measures steps on a GPU only, where torch compiles them reliably, and this is '
            f'{device}. Measure --work forward, or leave --compile out.')


def _do(
    work: str, models: Mapping[str, nn.Module], setting: Setting, engines: Mapping[str, Engine]
) -> list[Row]:
    """The rows of one kind of work."""
    calls, peaks = {}, {}
    for name, model in models.items():
        calls[name] = _call_of(model, work, setting)
        try:
            calls[name]()
            peaks[name] = peak_bytes(model, calls[name]) / 2**20
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f'Every model gets the same input, and {name} cannot do a {work} with '
                f'{tuple(setting.inputs.shape)}: {reason(error)}. Choose --batch, --shape, '
                '--dtype or --work that it can.') from None
    for name, engine in engines.items():
        calls[name] = _engine_call(engine, setting.inputs)

    times = interleaved_latency(calls, setting.rounds, pause=PAUSE if engines else 0.0)
    rows = []
    for name, model in models.items():
        kept = None if work == 'forward' else saved_bytes(model, setting.inputs, setting.amp) / 2**20
        rows.append(Row(
            name,
            work,
            *times[name],
            saved_mib=kept,
            peak_mib=peaks[name],
            million_parameters=count_parameters(model) / 1e6,
            gflops=2 * count_macs(model, setting.inputs) / 1e9))
    for name in engines:
        rows.append(Row(name, work, *times[name]))
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
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}
    run = WAYS[way_of(model, inputs)]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), _autocast(inputs, amp), saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run(model, inputs)  # keeps the graph: of freed storages two could have one address
    del out
    return sum(kept.values())


def _call_of(model: nn.Module, work: str, setting: Setting) -> Callable[[], None]:
    """`work` with `model`, which is put into the mode for it."""
    model.train(work == 'training step')
    run = partial(WAYS[way_of(model, setting.inputs)], model)
    if setting.compile:
        run = torch.compile(run)
    do = _forward if work == 'forward' else _step
    return partial(do, run, model, setting)


def _forward(run: Callable, model: nn.Module, setting: Setting) -> None:
    with torch.no_grad(), _autocast(setting.inputs, setting.amp):
        run(setting.inputs)


def _step(run: Callable, model: nn.Module, setting: Setting) -> None:
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        with _autocast(setting.inputs, setting.amp):
            outputs = _tensors(run(setting.inputs))
            means = [output.float().mean() for output in outputs]
        if not any(mean.requires_grad for mean in means):
            raise UserError('A step needs outputs with gradients, and the model has none. Measure --work forward.')
        sum(means).backward()


def _autocast(inputs: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(inputs.device.type, dtype, enabled=dtype is not None)


def _tensors(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, dict) else out
    found = []
    for part in parts:
        found += _tensors(part)
    return found
