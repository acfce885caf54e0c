"""The arithmetic behind RepVGG: three linear branches are one 3x3 convolution (paper, section 3.3).

Tensors in, tensors out. With s = gamma / sqrt(var + eps), a BatchNorm on running statistics
is y = s * x + (beta - s * mean), so behind a convolution W it is the convolution s * W with
that bias. A 1x1 kernel is a 3x3 kernel that is zero around its centre; the identity is the
1x1 kernel that connects each channel with itself. Convolution is linear in its kernel, so
the sum of the branches is the convolution with the sum of the kernels and of the biases.

`fuse_branches` is that for RepVGG's own three branches, fast because blocks call it at every step;
`fuse_sum` for any number of branches with odd kernels, as blocks of other libraries have them. `Kept` is a fused
kernel that is used again as long as what it was made from is there unchanged.
"""

from __future__ import annotations

import ctypes
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

SMALL = 4096   # elements up to which a tensor is compared whole
SAMPLED = 17   # elements that are compared of a larger one; divides no usual width
UNSIGNED = {1: 'B', 2: 'H', 4: 'I', 8: 'Q'}  # memoryview's name of a number of that many bytes
VERSION = operator.attrgetter('_version')
SIZE = operator.attrgetter('nbytes')
SETTINGS = operator.attrgetter('training', 'eps')  # of a BatchNorm


class ScaleShift(NamedTuple):
    """y = scale * x + shift, one number a channel: what a BatchNorm on running statistics does."""

    scale: Tensor  # C
    shift: Tensor  # C


def scale_shift_of_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> ScaleShift:
    """scale = weight / sqrt(var + eps), shift = bias - mean * scale; all of shape (C,).

    `weight` and `bias` are None for a BatchNorm with affine=False and then count as 1 and 0.
    """
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight

    if bias is None:
        shift = -mean * scale
    else:
        shift = torch.addcmul(bias, mean, scale, value=-1)
    return ScaleShift(scale, shift)


def fuse_branches(
    weight_3x3: Tensor,
    norm_3x3: ScaleShift,
    weight_1x1: Tensor,
    norm_1x1: ScaleShift,
    norm_identity: ScaleShift | None,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The kernel (C2, C1/groups, 3, 3) and bias (C2,) of the sum of the branches.

    `weight_3x3` is (C2, C1/groups, 3, 3), `weight_1x1` is (C2, C1/groups, 1, 1); without an
    identity branch `norm_identity` is None. Differentiable in every argument. The kernel is
    written once: the two small branches are added into its centre.
    """
    kernel = weight_3x3 * norm_3x3.scale[:, None, None, None]  # C2, C1/g, 3, 3
    centre = kernel[:, :, 1, 1]                                # C2, C1/g
    centre.addcmul_(weight_1x1[:, :, 0, 0], norm_1x1.scale[:, None])
    bias = norm_3x3.shift + norm_1x1.shift

    if norm_identity is not None:
        # Output channel c reads input channel c, which is number c % (C1/g) of its group.
        own_channel = centre.unflatten(0, (groups, -1)).diagonal(dim1=1, dim2=2)  # g, C1/g
        own_channel += norm_identity.scale.unflatten(0, (groups, -1))
        bias = bias + norm_identity.shift
    return kernel, bias


class LinearBranch(NamedTuple):
    """factor * (scale * (weight * x + bias) + shift), with * a convolution; the identity has no weight."""

    weight: Tensor | None               # C2, C1/groups, kH, kW, both odd
    norm: ScaleShift
    bias: Tensor | None = None          # C2
    factor: float | Tensor = 1.0


def fuse_sum(branches: Sequence[LinearBranch], kernel_size: Sequence[int], groups: int) -> tuple[Tensor, Tensor]:
    """The kernel (C2, C1/groups, *kernel_size) and bias (C2,) of the sum of any number of branches.

    kernel = sum of factor * scale * weight, each weight in the centre of the kernel;
    bias = sum of factor * (scale * bias + shift).
    """
    channels = len(branches[0].norm.scale)
    inputs = next(branch.weight.shape[1] for branch in branches if branch.weight is not None)
    kernel = branches[0].norm.scale.new_zeros(channels, inputs, *kernel_size)
    bias = kernel.new_zeros(channels)

    for branch in branches:
        weight = _identity_kernel(kernel, groups) if branch.weight is None else branch.weight
        scaled = weight * branch.norm.scale[:, None, None, None]
        _centre(kernel, weight.shape[2:]).add_(branch.factor * scaled)

        shift = branch.norm.shift
        if branch.bias is not None:
            shift = shift + branch.bias * branch.norm.scale
        bias += branch.factor * shift
    return kernel, bias


def _centre(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """A view of the middle of a kernel, of that height and width."""
    top, left = ((outer - inner) // 2 for outer, inner in zip(kernel.shape[2:], size))
    return kernel[:, :, top:top + size[0], left:left + size[1]]


def _identity_kernel(kernel: Tensor, groups: int) -> Tensor:
    """The 1x1 kernel (C, C/groups, 1, 1) that connects each channel with itself."""
    width = kernel.shape[1]
    one_group = torch.eye(width, dtype=kernel.dtype, device=kernel.device)
    return one_group.repeat(groups, 1)[:, :, None, None]


class Kept:
    """A fused kernel and bias, with what tells whether they are still those of the branches.

    A tensor that was replaced is seen by identity, its memory by address. Those of norms, up to 4096 numbers, are
    compared number by number; kernels by some numbers spread over them, by their strides, and by their version, which
    counts whatever is written in place, but not through `.data` or NumPy. So what is not seen until `train()` or
    `eval()` is a part of a kernel that was written in these ways. No other thread may replace memory meanwhile.

    Args:
        fused: kernel and bias.
        tables: children, parameters and buffers by name of the modules that they were made from; `can_be_kept` is true
            of them.
        norms: the BatchNorms among these.
        hooks: tables of the hooks of the branches and their layers, all empty.
    """

    def __init__(
        self, fused: tuple[Tensor, Tensor], tables: Sequence[Mapping[str, object]], norms: Sequence[nn.Module],
        hooks: Sequence[Mapping[int, Callable]],
    ) -> None:
        self.fused = fused
        self.tables = tables
        self.values = _values(tables)
        self.norms = norms
        self.settings = [*map(SETTINGS, norms)]
        self.hooks = hooks

        self.tensors = _floating(self.values)
        self.kernels = [tensor for tensor in self.tensors if tensor.dim() > 1]
        self.versions = [*map(VERSION, self.kernels)]
        self.strides = [*map(Tensor.stride, self.kernels)]
        self.sizes = [*map(SIZE, self.tensors)]
        self.pointers = [*map(Tensor.data_ptr, self.tensors)]
        self.memory = [*map(_memory_of, self.tensors)]
        self.contents = [*map(memoryview.tobytes, self.memory)]

    def is_current(self) -> bool:
        """Whether every module and tensor is there as it was, and no gradient is wanted for one.

        Lists are compared as a whole, and nothing is looked at twice: between two blocks all of this leaves the
        processor's caches, and a small convolution takes no longer.
        """
        return self._has_same_parts() and self._has_same_numbers() and not _wants_gradient(self.tensors)

    def _has_same_parts(self) -> bool:
        values = _values(self.tables)
        return (
            len(values) == len(self.values) and all(map(operator.is_, values, self.values))
            and not any(self.hooks)
            and [*map(SETTINGS, self.norms)] == self.settings)

    def _has_same_numbers(self) -> bool:
        """Addresses and sizes come before the memory is read: it is there only if they are what they were."""
        return (
            [*map(VERSION, self.kernels)] == self.versions
            and [*map(Tensor.data_ptr, self.tensors)] == self.pointers
            and [*map(SIZE, self.tensors)] == self.sizes
            and [*map(Tensor.stride, self.kernels)] == self.strides
            and [*map(memoryview.tobytes, self.memory)] == self.contents)


def can_be_kept(tables: Iterable[Mapping[str, object]]) -> bool:
    """Whether changes of these tensors can be seen: of dense ones on a CPU, for which no gradient is wanted."""
    tensors = _floating(_values(tables))
    if _wants_gradient(tensors):
        return False
    return all(is_plain(tensor) and not tensor.is_inference() and _is_dense(tensor) for tensor in tensors)


def is_plain(tensor: Tensor) -> bool:
    """Whether it has numbers of its own on a CPU, and is none of those with which torch traces or transforms."""
    known = type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu
    return known and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _wants_gradient(tensors: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _values(tables: Iterable[Mapping[str, object]]) -> list[object]:
    return [*chain.from_iterable(map(dict.values, tables))]


def _floating(values: Iterable[object]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def _memory_of(tensor: Tensor) -> memoryview:
    """Of all of a tensor's elements, or of some, without a copy; valid as long as address and size are what they were.

    `Tensor.numpy` would do it too, but needs NumPy and keeps torch from resizing the memory, as FSDP does.
    """
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    elements = memoryview(memory).cast('B').cast(UNSIGNED[tensor.element_size()])
    if len(elements) > SMALL:
        return elements[::_step(len(elements))]
    return elements


def _step(length: int) -> int:
    """Between two numbers of a kernel: no multiple of 2 or 3, so they lie at all positions and in many channels."""
    step = length // SAMPLED
    while math.gcd(step, 6) > 1:
        step += 1
    return step
