"""From a network to an ONNX graph, and the check that its RepVGG blocks are plain convolutions there."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..convert.foreign import FusedBlock
from ..engine.engine import optional
from ..errors import UserError, reason
from ..pretrained import listed
from ..stages import Stages
from . import roi_align, suppression

NO_DATA = 'data is not allocated yet'  # in torch's message where an operation reads values while it is traced
SCOPES = 'pkg.torch.onnx.name_scopes'  # where torch's exporter notes the modules that a node comes from


def to_onnx(network: nn.Module, inputs: Tensor, outputs: Sequence[str], dynamic: Sequence[int] = ()):
    """The onnx.ModelProto of `network(image)`, its nodes with the scopes of the modules that they come from.

    Args:
        inputs: an example; every size that is not in `dynamic` is fixed to it.
        outputs: names.
        dynamic: axes of any size. The example must be larger than 1 there, in every layer.

    Raises:
        UserError: torch's exporter has no operator for something in `network`, or fixes a dynamic size.
    """
    optional('onnx')
    optional('onnxscript')
    from torch.export import Dim  # torch 2.1 has none that is dynamic: see Target

    sizes = ({axis: Dim.DYNAMIC for axis in dynamic},) if dynamic else None
    with _quiet():
        try:
            # Exported here and not by torch.onnx.export, which would fix a size that it cannot keep dynamic.
            program = torch.export.export(network.eval(), (inputs,), dynamic_shapes=sizes)
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=['image'], output_names=list(outputs),
                custom_translation_table=suppression.translations() | roi_align.translations())
            return exported.model_proto
        except Exception as error:  # of torch's exporter, and whatever a model raises
            cause = _cause(error, network)
            advice = 'Export without --dynamic, or use' if dynamic else 'Use'
            raise UserError(
                f"Exporting writes the model in ONNX's operators, and torch cannot ({cause}). "
                f'{advice} a head that torch.onnx can export.') from None


def _cause(error: Exception, network: nn.Module) -> str:
    """What torch says; where that is about a tensor without data, the compiled operations of mmcv in the network."""
    cause = reason(error.__cause__ or error)
    if NO_DATA not in cause:
        return cause

    compiled = []
    for name, module in network.named_modules():
        if type(module).__module__.startswith('mmcv.ops.'):
            compiled.append(f'{name.removeprefix("model.")} ({type(module).__name__})')
    if not compiled:
        return cause
    return f'it cannot see into the compiled operations of mmcv: {listed("modules", compiled)}'


def count_convolutions(network: nn.Module, inputs: Tensor) -> int:
    """Convolutions that one call computes, those of a module shared by several levels each time."""
    with torch.no_grad(), _CountConvolutions() as counter:
        network(inputs)
    return counter.count


def check_graph(model, network: nn.Module, convolutions: int) -> dict[str, int]:
    """Counts of the operators in an exported graph, after checking that it is the deploy form.

    Args:
        model: the ModelProto of `network`, in deploy form.
        convolutions: that the network computes, see `count_convolutions`. The whole graph has as many or fewer: one
            that is computed twice from the same values, or whose result nothing uses, is there once or not at all.

    A network without RepVGG, such as a ResNet to compare with, has no blocks to look at.

    Raises:
        UserError: the RepVGG and fused blocks have no convolutions, or more than in `network` (those that no output
            needs are left out), or a BatchNormalization or an Add of feature maps (that of two sizes is not one);
            or the whole graph has more convolutions.
    """
    fused, expected = set(), 0
    for path, module in network.named_modules():
        if isinstance(module, (Stages, FusedBlock)):
            fused.add(path)
            expected += sum(isinstance(part, nn.Conv2d) for part in module.modules())

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    whole, inside = Counter(), Counter()
    for node in model.graph.node:
        whole[node.op_type] += 1
        of_feature_maps = ranks.get(node.output[0], 4) == 4
        if of_feature_maps and fused.intersection(_scopes(node)):
            inside[node.op_type] += 1

    found = (inside['Conv'], inside['BatchNormalization'], inside['Add'], whole['Conv'])
    is_plain = 0 < inside['Conv'] <= expected and found[1:3] == (0, 0)
    if (fused and not is_plain) or whole['Conv'] > convolutions:
        raise UserError(
            f'The exported graph of a deploy form has at most {expected} Conv, 0 BatchNormalization and 0 Add in its '
            f'RepVGG blocks, and {convolutions} Conv in all; this one has {found[0]}, {found[1]} and {found[2]}, and '
            f'{found[3]} in all. Nothing was written: convert the model first, and report this if it was.')
    return dict(whole)


def without_threshold(model):
    """A copy of the graph of a detector whose score threshold, the initializer `THRESHOLD`, is 0."""
    copied = type(model)()
    copied.CopyFrom(model)
    for value in copied.graph.initializer:
        if value.name == suppression.THRESHOLD:
            value.CopyFrom(optional('onnx').numpy_helper.from_array(np.zeros((), np.float32), value.name))
    return copied


def tidy(model) -> None:
    """Name nodes by their modules ('backbone.stem.branch_reparam/conv2d') and drop the exporter's notes.

    The notes hold stack traces with paths of the machine that exported.
    """
    for node in model.graph.node:
        scopes = [scope for scope in _scopes(node)[:-1] if scope]
        if scopes:
            module = scopes[-1].removeprefix('model.')
            node.name = f'{module}/{node.name.removeprefix("node_")}'
        del node.metadata_props[:]
        node.doc_string = ''

    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]


def _scopes(node) -> list[str]:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return ast.literal_eval(entry.value)
    return []


class _CountConvolutions(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision, on which nothing here depends."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
