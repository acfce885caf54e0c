"""The proof that both forms of a model compute the same, or the reason why it cannot be given."""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn

from ..convert.compare import TOLERANCE, OutputErrors, compare_models
from ..convert.whole import whole_model_convert
from ..errors import UserError, reason

EXACT = 1e-9         # relative error in float64 of blocks that are fused right; they stay below 1e-10
TIMES_AS_FAR = 4     # from the exact outputs may the deploy form be, where rounding alone takes the training form away


def prove(trained: nn.Module, deploy: nn.Module, inputs: Tensor) -> OutputErrors:
    """The errors of `compare_models` on `inputs` (1, C, H, W), none above TOLERANCE.

    Some networks amplify rounding: in the first steps at a high learning rate, or where each stage of a cascade looks
    at the places that the one before has found. There the training form in float32 is as far from its own exact
    outputs, those in float64, as the deploy form is. Such a model is proven in float64, and the errors are those;
    a note says so.

    Raises:
        UserError: the model cannot take the input, or an output differs by more than rounding explains.
    """
    height, width = inputs.shape[2:]
    try:
        errors = compare_models(trained, deploy, inputs)
    except Exception as error:  # whatever a model raises
        raise UserError(
            f'Both forms are compared on an input of {(height, width)}, and the model cannot take '
            f'it: {reason(error)}. Choose another with --shape H W.') from None

    worst = max(errors, key=errors.get)
    if errors[worst] <= TOLERANCE:
        return errors
    differs = (
        f'A deploy form must agree with the training form to {TOLERANCE:g} relative, and {worst} differs by '
        f'{errors[worst]:.1e} on an input of {height}x{width}. Nothing was written: ')
    return _prove_in_float64(trained, deploy, inputs, differs)


def _prove_in_float64(trained: nn.Module, deploy: nn.Module, inputs: Tensor, differs: str) -> OutputErrors:
    exact = copy.deepcopy(trained).double()
    try:
        errors = compare_models(exact, whole_model_convert(exact), inputs)
        own = compare_models(exact, trained, inputs).worst
        converted = compare_models(exact, deploy, inputs).worst
    except Exception:  # whatever a model raises
        raise UserError(
            f'{differs}the model does not run in float64, which would tell rounding from a fault. Use a later '
            'checkpoint.') from None

    if not errors.worst <= EXACT:
        raise UserError(
            f'{differs}in float64 they differ by {errors.worst:.1e}, which is no rounding. Look for NaN, infinite or '
            'huge values in the checkpoint, and report a fault of the fusing if there are none.')
    if not (math.isfinite(own) and converted <= TIMES_AS_FAR * own):
        raise UserError(
            f'{differs}in float64 both forms agree to {errors.worst:.1e}, so the blocks are fused right, but in '
            f'float32 the deploy form is {converted:.1e} away from that and the training form {own:.1e}. Use a later '
            'checkpoint, or write this one without the comparison: whole_model_convert(model, save_path=...) in '
            'Python.')

    errors.notes = (
        f'Compared in float64, because this network amplifies the rounding of float32: there the training form is '
        f'{own:.1e} away from its own exact outputs, the deploy form {converted:.1e}.',)
    return errors
