"""The proof of a conversion: both models on the same input, every output compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..block import branch_by_branch
from ..stages import Stages
from .raw_outputs import raw_outputs

TOLERANCE = 1e-5  # worst relative error of a right conversion in float32; they stay below 2e-6


class OutputErrors(dict[str, float]):
    """The worst relative error of each output by its name; printed as a table that ends in a verdict."""

    @property
    def worst(self) -> float:
        return max(self.values())

    def __repr__(self) -> str:
        width = max(map(len, self))
        lines = [f'{name:<{width}}  relative error {error:.1e}' for name, error in self.items()]
        verdict = 'equal' if self.worst <= TOLERANCE else 'NOT EQUAL'
        lines.append(f'{verdict}: {self.worst:.1e} at most, {TOLERANCE:g} is what rounding in float32 explains')
        return '\n'.join(lines)


@torch.no_grad()
def compare_models(reference: nn.Module, other: nn.Module, *inputs: Tensor) -> OutputErrors:
    """Worst relative error of each output: max |other - reference| / max |reference|.

    Both are called with `inputs` in eval mode, RepVGG blocks in training form branch by branch.
    The keys are the outputs of each RepVGG inside ('backbone[0]', ...) and of the model
    ('output', or 'output[0]', ...); for an OpenMMLab model the latter are the head's raw outputs,
    for a two-stage detector those of both stages on the same proposals (see `raw_outputs`).
    An output that is not finite has the error inf. The result is a dict that prints as a table with a verdict.
    On a GPU set torch.backends.cudnn.allow_tf32 = False first, or float32 convolutions round to 10 bits there.

    Raises:
        ValueError: the models do not have the same outputs, or none.
    """
    expected = _outputs(reference, inputs)
    actual = _outputs(other, inputs)
    if not expected:
        raise ValueError(
            f'Models are compared by their output tensors, and {type(reference).__name__} gave none. '
            'Pass inputs for which it returns tensors, in tuples, lists or dicts if it likes.')

    expected_shapes, actual_shapes = _shapes(expected), _shapes(actual)
    if expected_shapes != actual_shapes:
        raise ValueError(
            f'Models are compared output by output, but the shapes differ: {expected_shapes} and {actual_shapes}. '
            'Compare a model with its own deploy form.')
    return OutputErrors({name: relative_error(expected[name], actual[name]) for name in expected})


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """max |actual - expected| / max |expected|, computed in float64; inf where a value is not finite."""
    expected, actual = expected.double(), actual.double()
    if not (expected.isfinite().all() and actual.isfinite().all()):
        return float('inf')

    difference = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    if scale:
        return difference / scale
    return float('inf') if difference else 0.0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The tensors that each RepVGG inside and the model itself return, by name."""
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, out: object) -> None:
            outputs.update(_flatten(name, out))
        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Stages) and module is not model:
            hooks.append(module.register_forward_hook(record(name)))
    try:
        with evaluating(model), branch_by_branch(model):
            out = raw_outputs(model, *inputs)
    finally:
        for hook in hooks:
            hook.remove()

    outputs.update(_flatten('output', out))
    return outputs


def _flatten(name: str, out: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        yield name, out
    elif isinstance(out, dict):
        for key, value in out.items():
            yield from _flatten(f'{name}[{key!r}]', value)
    elif isinstance(out, (tuple, list)):
        for i, value in enumerate(out):
            yield from _flatten(f'{name}[{i}]', value)


def _shapes(outputs: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in outputs.items()}
