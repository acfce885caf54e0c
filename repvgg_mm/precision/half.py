"""Float16 in an ONNX graph: weights and values in half, but for what would leave its range."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..engine.engine import optional
from .graph import arrays_of, constants_of, convolutions_of, readers_of, tapped

LARGEST = float(np.finfo(np.float16).max)  # 65504
MARGIN = 2  # of images that were not seen
FLOAT32_ALONE = ('NonMaxSuppression', 'Range', 'CumSum')  # operators that ONNX does not have in half
FLOAT32_INPUTS = dict(Resize=(1, 2))  # places of inputs that are float32 in any case: region and scales


def leave_range(model: object, images: Sequence[np.ndarray]) -> list[str]:
    """Names of the nodes that read or give numbers above `LARGEST` / `MARGIN`, on images or in their constants.

    Args:
        model: an onnx.ModelProto in float32, which computes on one of `images` at a time.
    """
    large = _large_constants(model) | _large_values(model, images)
    found = []
    for node in model.graph.node:
        if large.intersection([*node.input, *node.output]):
            found.append(node.name)
    return found


def after_last_convolutions(model: object) -> list[str]:
    """Names of the nodes whose values no convolution uses: of a detector, the decoding of its boxes."""
    readers = readers_of(model)
    convolutions = set(convolutions_of(model))
    before: set[str] = set()
    after = []
    for node in reversed(model.graph.node):
        of_outputs = [reader for name in node.output for reader in readers.get(name, []) if reader is not None]
        if node.name in convolutions or any(reader.name in before for reader in of_outputs):
            before.add(node.name)
        else:
            after.append(node.name)
    return after[::-1]


def to_half(model: object, float32: Collection[str], io_dtype: str) -> object:
    """A copy of an onnx.ModelProto in float16, with one cast for each value that is read in the other type, too.

    ONNX Runtime's converter (`onnxruntime.transformers.float16`) puts casts around every node that stays in float32,
    between neighbours too: 220 in a small RetinaNet, where 11 do. With suppression inside, its graph failed on an index
    out of range.

    Args:
        float32: names of the nodes that stay in float32.
        io_dtype: of inputs and outputs that were float32: 'float32' or 'float16'.
    """
    copied = type(model)()
    copied.CopyFrom(model)
    return _Typing(copied, float32, io_dtype).typed()


class _Typing:
    """A graph while its values get their types."""

    def __init__(self, model: object, float32: Collection[str], io_dtype: str) -> None:
        onnx = optional('onnx')
        self.onnx = onnx
        self.model = model
        self.float32 = set(float32)
        self.half, self.single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        self.io_type = self.half if io_dtype == 'float16' else self.single

        self.constants = constants_of(model)
        self.floats = self._float_values()
        self.types = {value.name: self.io_type for value in model.graph.input if value.name in self.floats}
        self.nodes: list = []
        self.casts: dict[tuple[str, int], str] = {}

    def typed(self) -> object:
        graph = self.model.graph
        for node in graph.node:
            self._type_node(node)
        self._type_outputs()

        del graph.node[:]
        graph.node.extend(self.nodes)
        self._type_constants()
        for value in [*graph.input, *graph.output]:
            if value.name in self.floats:
                value.type.tensor_type.elem_type = self.io_type
        del graph.value_info[:]
        return self.onnx.shape_inference.infer_shapes(self.model)

    def _float_values(self) -> set[str]:
        inferred = self.onnx.shape_inference.infer_shapes(self.model).graph
        values = [*inferred.input, *inferred.value_info, *inferred.output]
        found = {value.name for value in values if value.type.tensor_type.elem_type == self.single}
        return found | {name for name, constant in self.constants.items() if constant.data_type == self.single}

    def _type_node(self, node: object) -> None:
        """Let a node read and give values of its type."""
        stays = node.name in self.float32 or node.op_type in FLOAT32_ALONE
        wanted = self.single if stays else self.half
        for place, name in enumerate(node.input):
            if name in self.floats and place not in FLOAT32_INPUTS.get(node.op_type, ()):
                node.input[place] = self._value(name, wanted)

        if wanted == self.half:
            self._type_attributes(node)
        for name in node.output:
            if name in self.floats:
                self.types[name] = wanted
        self.nodes.append(node)

    def _type_attributes(self, node: object) -> None:
        """The types that a node names, and the constants within it."""
        for attribute in node.attribute:
            if attribute.name in ('to', 'dtype') and attribute.i == self.single:
                attribute.i = self.half
            elif attribute.name == 'value' and attribute.t.data_type == self.single:
                attribute.t.CopyFrom(self._half_of(attribute.t, attribute.t.name))

    def _value(self, name: str, wanted: int) -> str:
        """The name under which a value is there in this type."""
        at_home = self.single if name in self.constants else self.types[name]
        if at_home == wanted:
            return name
        if (name, wanted) not in self.casts:
            other = f'{name}_{"half" if wanted == self.half else "float"}'
            self.casts[name, wanted] = other
            if name not in self.constants:
                self.nodes.append(self.onnx.helper.make_node('Cast', [name], [other], f'{other}/cast', to=wanted))
        return self.casts[name, wanted]

    def _type_outputs(self) -> None:
        for output in self.model.graph.output:
            name = output.name
            if name not in self.floats or self.types[name] == self.io_type:
                continue
            computed = f'{name}_computed'
            for node in self.nodes:
                for names in (node.input, node.output):
                    names[:] = [computed if one == name else one for one in names]
            self.nodes.append(
                self.onnx.helper.make_node('Cast', [computed], [name], f'{name}/cast', to=self.io_type))

    def _type_constants(self) -> None:
        """Each constant in the types in which it is read."""
        read = {name for node in self.nodes for name in node.input}
        kept = [constant for name, constant in self.constants.items() if name in read]
        for (name, _), other in self.casts.items():
            if name in self.constants:
                kept.append(self._half_of(self.constants[name], other))
        kept = [self.onnx.TensorProto.FromString(constant.SerializeToString()) for constant in kept]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)

    def _half_of(self, constant: object, name: str) -> object:
        values = self.onnx.numpy_helper.to_array(constant)
        with np.errstate(over='ignore'):  # where the caller left what is too large in half
            return self.onnx.numpy_helper.from_array(values.astype(np.float16), name)


def _large_constants(model: object) -> set[str]:
    floats = optional('onnx').TensorProto.FLOAT
    names = [name for name, constant in constants_of(model).items() if constant.data_type == floats]
    return {name for name, array in arrays_of(model, names).items() if _is_large(array)}


def _large_values(model: object, images: Sequence[np.ndarray]) -> set[str]:
    names = [name for node in model.graph.node for name in node.output if name]
    run = tapped(model, names)
    found = set()
    for image in images:
        for name, value in zip(names, run(image)):
            if value.dtype == np.float32 and _is_large(value):
                found.add(name)
    return found


def _is_large(values: np.ndarray) -> bool:
    return bool((np.abs(values) > LARGEST / MARGIN).any())
