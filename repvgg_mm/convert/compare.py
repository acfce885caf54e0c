"""The proof of a conversion: both models on the same input, every output compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..block import branch_by_branch
from ..stages import Stages
from .choices import ImposedChoices, RecordedChoices
from .raw_outputs import FREE_OF_DATA, PREDICTIONS, WAYS, way_of
from .reproducible import evaluating, running_in

ONLY_FOR_TRAINING = 'auxiliary_head'
TOLERANCE = 1e-5  # worst relative error of a right conversion in float32; they stay below 2e-6


class OutputErrors(dict[str, float]):
    """The worst relative error of each output by its name; printed as a table that ends in a verdict.

    `way` is the one of `WAYS` in which both models were run, `not_run` names heads that did not run in it,
    auxiliary heads of segmentors left out, which only train; `notes` are sentences on how it was compared.
    """

    way: str = FREE_OF_DATA
    not_run: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        return max(self.values())

    def __repr__(self) -> str:
        width = max(map(len, self))
        lines = [f'{name:<{width}}  relative error {error:.1e}' for name, error in self.items()]
        lines += self.remarks()
        verdict = 'equal' if self.worst <= TOLERANCE else 'NOT EQUAL'
        lines.append(f'{verdict}: {self.worst:.1e} at most, {TOLERANCE:g} is what rounding in float32 explains')
        return '\n'.join(lines)

    def remarks(self) -> list[str]:
        """Sentences on what was compared, where it is not the raw outputs of the whole model."""
        sentences = list(self.notes)
        if self.way != FREE_OF_DATA:
            sentences.append(
                f'Compared were {self.way}: without data, or on this device, the model does not run otherwise.')
        if self.not_run:
            sentences.append(f'Not compared, because they did not run: {", ".join(self.not_run)}.')
        return sentences


@torch.no_grad()
def compare_models(reference: nn.Module, other: nn.Module, *inputs: Tensor) -> OutputErrors:
    """Worst relative error of each output: max |other - reference| / max |reference|.

    Both are called with `inputs`, in their own dtype, in eval mode, RepVGG blocks in training form branch by branch.
    The keys are the outputs of each RepVGG inside ('backbone[0]', ...; 'backbone#2[0]' in its second call) and of the
    model ('output', or 'output[0]', ...); for an OpenMMLab model the latter are the head's raw outputs,
    for a two-stage detector those of both stages on the same proposals. A model that does not run
    without data is run in the first of the other `WAYS` that it can take. Where a model chooses (the best boxes, the
    values above a threshold), `other` makes the choices of `reference`: see `choices`.
    An output that is not finite has the error inf; integers and truth values are not compared. The result is a dict
    that prints as a table with a verdict.
    On a GPU set torch.backends.cudnn.allow_tf32 = False first, or float32 convolutions round to 10 bits there.

    Raises:
        ValueError: the models do not have the same outputs, or none.
    """
    dtype = _dtype_of(reference)
    with running_in(dtype):
        way = way_of(reference, *_in_dtype(inputs, dtype))

    ran: set[nn.Module] = set()
    with RecordedChoices() as choices:
        expected = _outputs(reference, inputs, way, ran)
    with ImposedChoices(choices.made):
        actual = _outputs(other, inputs, way, set())
    if not expected:
        raise ValueError(
            f'Models are compared by their output tensors, and {type(reference).__name__} gave none. '
            'Pass inputs for which it returns tensors, in tuples, lists or dicts if it likes.')

    expected_shapes, actual_shapes = _shapes(expected), _shapes(actual)
    if expected_shapes != actual_shapes:
        raise ValueError(
            f'Models are compared output by output, but the shapes differ: {expected_shapes} and {actual_shapes}. '
            'Compare a model with its own deploy form.')

    errors = OutputErrors({name: relative_error(expected[name], actual[name]) for name in expected})
    errors.way = way
    errors.not_run = tuple(_heads_that_did_not_run(reference, ran))
    return errors


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """max |actual - expected| / max |expected| in float64; inf where a value is not finite, 0 where there are none."""
    if not expected.numel():
        return 0.0
    expected, actual = expected.double(), actual.double()
    if not (expected.isfinite().all() and actual.isfinite().all()):
        return float('inf')

    difference = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    if scale:
        return difference / scale
    return float('inf') if difference else 0.0


def _outputs(
    model: nn.Module, inputs: tuple[Tensor, ...], way: str, ran: set[nn.Module]
) -> dict[str, Tensor]:
    """The tensors that each RepVGG inside and the model itself return, by name; of a prediction the heads' too.

    Every module that runs is added to `ran`.
    """
    dtype = _dtype_of(model)
    inputs = _in_dtype(inputs, dtype)
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def record(name: str) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, out: object) -> None:
            calls[name] += 1
            call = name if calls[name] == 1 else f'{name}#{calls[name]}'  # a siamese network calls it again
            outputs.update(_flatten(call, out))
        return hook

    hooks = [register_module_forward_pre_hook(lambda module, _inputs: ran.add(module))]
    for name, module in model.named_modules():
        watched = isinstance(module, Stages) or (way == PREDICTIONS and _is_head(name))
        if watched and module is not model:
            hooks.append(module.register_forward_hook(record(name)))
    try:
        with evaluating(model), branch_by_branch(model), running_in(dtype):
            out = WAYS[way](model, *inputs)
    finally:
        for hook in hooks:
            hook.remove()

    outputs.update(_flatten('output', out))
    return outputs


def _heads_that_did_not_run(model: nn.Module, ran: set[nn.Module]) -> Iterator[str]:
    """Names of the parts of a model and of its heads that hold weights, of which nothing ran; the outermost alone."""
    named: list[str] = []
    for name, module in model.named_modules():
        is_part = name and ('.' not in name or _is_head(name)) and not name.startswith(ONLY_FOR_TRAINING)
        inside_named = any(name.startswith(f'{outer}.') for outer in named)
        holds_layers = any(True for _ in module.children())  # of an embedding the weights are used, no call
        if not is_part or inside_named or not holds_layers or not any(True for _ in module.parameters()):
            continue
        if ran.isdisjoint(module.modules()):
            named.append(name)
            yield name


def _is_head(name: str) -> bool:
    """Whether a module's name is that of a head, or of one head of several."""
    *outer, last = name.split('.')
    if last.isdigit() and outer:
        last = outer[-1]
    return last.endswith('head')


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Of the model's first floating-point parameter."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.get_default_dtype()


def _in_dtype(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in inputs)


def _flatten(name: str, out: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield name, out
    elif isinstance(out, dict):
        for key, value in out.items():
            yield from _flatten(f'{name}[{key!r}]', value)
    elif isinstance(out, (tuple, list)):
        for i, value in enumerate(out):
            yield from _flatten(f'{name}[{i}]', value)


def _shapes(outputs: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in outputs.items()}
