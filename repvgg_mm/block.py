"""The RepVGG block in training form and in deploy form (paper, section 3.2 and 3.3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .branch_sum import Geometry, Norm, branch_sum, centres
from .environment import cpu_autocast_dtype, is_compiling, is_sharded
from .errors import UserError
from .fusion import Kept, ScaleShift, can_be_kept, fuse_branches, is_plain, scale_shift_of_norm

TENSORS = ('weight', 'bias', 'running_mean', 'running_var')  # of the layers of branches
FORWARDS = (nn.Conv2d.forward, _BatchNorm.forward, nn.SyncBatchNorm.forward)  # that `fuse` and `branch_sum` stand for


class Conv1x1(nn.Conv2d):
    """nn.Conv2d of kernel size 1, which strides as `centres` does where torch's own way crashes."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.is_cpu and weight.shape[1] < 16:
            return torch.conv2d(centres(x, self.stride), weight, bias, groups=self.groups)
        return super()._conv_forward(x, weight, bias)


class SqueezeExcitation(nn.Module):
    """x * sigmoid(expand(relu(reduce(mean of x over H and W)))), the SE of arXiv 1709.01507."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        # The inner name `conv` is mmpretrain's, so that weights interchange.
        self.conv1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, hidden_channels, 1)))
        self.conv2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(hidden_channels, channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)                           # N, C, 1, 1
        hidden = self.conv1(squeezed).relu()
        weights = self.conv2(hidden).sigmoid()                            # N, C, 1, 1
        return x * weights                                                # N, C, H, W


class RepVGGBlock(nn.Module):
    """relu(se(norm(conv3x3(x)) + norm(conv1x1(x)) + norm(x))), or the same with one convolution.

    x is (N, in_channels, H, W); the output is (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        identity: whether the block has the identity branch, which needs as many output as input
            channels and stride 1. An architecture decides this (every block but the first of a
            stage), not the stride that a segmentation config may change.
        se_channels: hidden channels of squeeze-and-excitation, 0 for none.
        se_after_act: squeeze-and-excitation after the activation (RepVGGplus) rather than before it.
        norm: makes a branch's normalisation from its number of channels. Only a BatchNorm with
            running statistics can be fused.
        act: makes the activation.
        with_cp: do not save activations for the backward pass, compute them again; the running
            statistics are updated once, also where `torch.utils.checkpoint` is put around the block.
        deploy: build the deploy form, `branch_reparam`.

    Raises:
        UserError: an identity branch that the shape forbids, or a norm that cannot be fused.
    """

    # Whether the branches are computed together where that is the same; `branch_by_branch` turns it off.
    fuse_on_the_fly = True
    _kept: Kept | None = None  # what `fuse` gave, in evaluation on a CPU

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = 'zeros',
        identity: bool = False,
        se_channels: int = 0,
        se_after_act: bool = False,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        with_cp: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        if identity and (in_channels != out_channels or stride != 1):
            raise UserError(
                'An identity branch needs as many output as input channels and stride 1, got '
                f'{in_channels} to {out_channels} channels and stride {stride}. Pass identity=False.')
        self.with_cp = with_cp
        self.se_after_act = se_after_act

        conv3x3 = partial(
            nn.Conv2d, in_channels, out_channels, 3, stride,
            padding=dilation, dilation=dilation, groups=groups, padding_mode=padding_mode)
        conv1x1 = partial(Conv1x1, in_channels, out_channels, 1, stride, groups=groups)

        if deploy:
            self.branch_reparam = conv3x3(bias=True)
        else:
            small, large = conv1x1(bias=False), conv3x3(bias=False)  # in the order in which they draw their weights
            self.branch_3x3 = nn.Sequential(OrderedDict(conv=large, norm=norm(out_channels)))
            self.branch_1x1 = nn.Sequential(OrderedDict(conv=small, norm=norm(out_channels)))
            self.branch_norm = norm(in_channels) if identity else None
            self.check_fusible()
        self.se_layer = SqueezeExcitation(out_channels, se_channels) if se_channels else nn.Identity()
        self.act = act()

    @property
    def deploy(self) -> bool:
        """Whether the block is in deploy form."""
        return 'branch_reparam' in self._modules  # hasattr costs microseconds where there is none

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:  # N, C1, H, W
        with self._statistics_untouched() if _is_computed_again() else nullcontext():
            x = self.convolve(x)              # N, C2, H', W'
        if self.se_after_act:
            return self.se_layer(self.act(x))
        return self.act(self.se_layer(x))

    def convolve(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.branch_reparam(x)
        fused = self._fused() if self.fuse_on_the_fly else None
        if fused is not None:
            return self.branch_3x3.conv._conv_forward(x, *fused)  # honours padding_mode
        if self.fuse_on_the_fly and self._sums_in_one_pass(x):
            return self._branch_sum(x)

        out = self.branch_3x3(x) + self.branch_1x1(x)
        return out if self.branch_norm is None else out + self.branch_norm(x)

    def fuse(self) -> tuple[Tensor, Tensor]:
        """Kernel (C2, C1/groups, 3, 3) and bias (C2,) of the one convolution that the block is.

        Differentiable in every branch's parameters. Half-precision blocks are fused in float32
        and rounded last.
        """
        conv = self.branch_3x3.conv
        dtype = torch.promote_types(conv.weight.dtype, torch.float32)

        norm_3x3 = scale_shift(self.branch_3x3.norm, dtype)
        norm_1x1 = scale_shift(self.branch_1x1.norm, dtype)
        norm_identity = None
        if self.branch_norm is not None:
            norm_identity = scale_shift(self.branch_norm, dtype)

        weight_1x1 = self.branch_1x1.conv.weight.to(dtype)
        kernel, bias = fuse_branches(  # the 3x3 weight becomes dtype by its product with the scale
            conv.weight, norm_3x3, weight_1x1, norm_1x1, norm_identity, conv.groups)
        return kernel.to(conv.weight.dtype), bias.to(conv.weight.dtype)

    def _fused(self) -> tuple[Tensor, Tensor] | None:
        """What `fuse` gives, from the call before if nothing has changed since; None with statistics of this batch."""
        if is_compiling() or torch.jit.is_tracing():
            return self.fuse() if self._is_one_convolution() else None

        kept = self._kept
        if kept is not None and kept.is_current():
            return kept.fused

        self._kept = None
        if not self._is_one_convolution():
            return None
        tables = self._tables()
        if is_sharded(self) or self._has_tensors_elsewhere() or not can_be_kept(tables):
            return self.fuse()

        with torch.inference_mode(False), torch.no_grad():
            fused = self.fuse()
        if all(map(is_plain, fused)):  # not so where a mode of torch makes others
            self._kept = Kept(fused, tables, self._norms(), self._hooks())
        return fused

    def _tables(self) -> list[dict[str, object]]:
        """Where torch keeps the layers of the branches and their tensors."""
        tables = [self._modules, self.branch_3x3._modules, self.branch_1x1._modules]
        for layer in self._layers():
            tables += [layer._parameters, layer._buffers]
        return tables

    def _hooks(self) -> list[Mapping[int, Callable]]:
        """What is called before and after the branches and their layers; they themselves are then called, too."""
        hooks = []
        for layer in (self.branch_3x3, self.branch_1x1, *self._layers()):
            hooks += [layer._forward_pre_hooks, layer._forward_hooks]
            hooks += [layer._backward_pre_hooks, layer._backward_hooks]
        return hooks

    def _has_plain_layers(self) -> bool:
        """Whether each computes what a convolution or a BatchNorm does, and no hook wants it to be called."""
        if any(self._hooks()):
            return False
        return all(type(layer).forward in FORWARDS and 'forward' not in layer.__dict__ for layer in self._layers())

    def _has_tensors_elsewhere(self) -> bool:
        """Whether a layer's tensors are none of its own, as where torch computes them from others at each access."""
        for layer in self._layers():
            own = {**layer._parameters, **layer._buffers}
            if any(own.get(name) is not getattr(layer, name, None) for name in TENSORS):
                return True
        return False

    def train(self, mode: bool = True) -> RepVGGBlock:
        """As torch's; what is kept for evaluation is given back, so that `eval()` starts anew."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        """Copies and pickles keep nothing."""
        return {**self.__dict__, '_kept': None}

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Replace the branches by their one convolution. A block in deploy form is left as it is.

        Device, dtype, memory format, padding mode and `requires_grad` are those of the 3x3 branch.

        Raises:
            UserError: the block cannot be fused; it is then unchanged.
        """
        if self.deploy:
            return

        self.check_fusible()
        conv, norm = self.branch_3x3
        fused = fused_conv(conv, norm, *self.fuse())
        fused.train(self.training)

        self._kept = None
        del self.branch_3x3, self.branch_1x1, self.branch_norm
        self.branch_reparam = fused

    def check_fusible(self) -> None:
        """Raise UserError, naming the layer, if a branch has no BatchNorm with usable running statistics."""
        for name, norm in self._named_norms():
            check_norm(name, norm)

    def _named_norms(self) -> Iterator[tuple[str, nn.Module]]:
        yield 'branch_3x3.norm', self.branch_3x3.norm
        yield 'branch_1x1.norm', self.branch_1x1.norm
        if self.branch_norm is not None:
            yield 'branch_norm', self.branch_norm

    def _layers(self) -> list[nn.Module]:
        return [self.branch_3x3.conv, self.branch_1x1.conv, *self._norms()]

    def _norms(self) -> list[nn.Module]:
        norms = [self.branch_3x3.norm, self.branch_1x1.norm]
        return norms if self.branch_norm is None else [*norms, self.branch_norm]

    def _is_one_convolution(self) -> bool:
        """Whether the sum of the branches is one, and none of them must be called."""
        return all(_on_running_statistics(norm) for norm in self._norms()) and self._has_plain_layers()

    def _sums_in_one_pass(self, x: Tensor) -> bool:
        """Whether `branch_sum` can take this call: on a CPU, with plain norms, each on the statistics of this batch."""
        if is_compiling() or not self._has_plain_layers():  # a compiler sees through branches, not into a Function
            return False
        conv = self.branch_3x3.conv
        dtypes = {conv.weight.dtype}
        if cpu_autocast_dtype() is None:
            dtypes.add(x.dtype)
        if not x.is_cpu or dtypes not in ({torch.float32}, {torch.float64}) or conv.padding_mode != 'zeros':
            return False

        rows, columns = (-(-size // stride) for size, stride in zip(x.shape[2:], conv.stride))
        if len(x) * rows * columns <= 1:  # torch's BatchNorm says what is wrong
            return False
        return all(_on_batch_statistics(norm) for norm in self._norms())

    def _branch_sum(self, x: Tensor) -> Tensor:
        conv = self.branch_3x3.conv
        norm_3x3, norm_1x1, *others = (_in_training(norm) for norm in self._norms())
        norm_identity = others[0] if others else None
        geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)

        dtype = cpu_autocast_dtype() or x.dtype
        weight_3x3 = conv.weight.to(dtype)
        weight_1x1 = self.branch_1x1.conv.weight.to(dtype)

        with torch.autocast('cpu', enabled=False):
            return branch_sum(x.to(dtype), weight_3x3, norm_3x3, weight_1x1, norm_1x1, norm_identity, geometry)

    @contextmanager
    def _statistics_untouched(self) -> Iterator[None]:
        """While activations are computed again, norms update copies of their running statistics."""
        norms = [] if self.deploy else self._norms()
        kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
        for norm, buffers in zip(norms, kept):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        try:
            yield
        finally:
            for norm, buffers in zip(norms, kept):
                for name, buffer in buffers.items():
                    setattr(norm, name, buffer)


def fuse_blocks(model: nn.Module) -> int:
    """Fuse every RepVGGBlock in `model`, itself included, and return how many were fused.

    One block after the other, so that at most one fused kernel is held beside the branches.

    Raises:
        UserError: a block cannot be fused, named; no block of the model is then changed.
    """
    check_blocks(model)

    blocks = [block for _, block in named_blocks(model) if not block.deploy]
    for block in blocks:
        block.switch_to_deploy()
    return len(blocks)


def check_blocks(model: nn.Module) -> None:
    """Raise UserError, naming the block, if one in training form cannot be fused."""
    for name, block in named_blocks(model):
        try:
            if not block.deploy:
                block.check_fusible()
        except UserError as error:
            raise UserError(f'{name}: {error}' if name else str(error)) from None


def named_blocks(model: nn.Module) -> Iterator[tuple[str, RepVGGBlock]]:
    """Every RepVGGBlock in `model`, itself included, with its name as `named_modules` gives it."""
    for name, module in model.named_modules():
        if isinstance(module, RepVGGBlock):
            yield name, module


@contextmanager
def branch_by_branch(model: nn.Module) -> Iterator[None]:
    """Let every block compute the sum of its branches, in eval mode too: the truth that fusing is compared with."""
    blocks = [block for _, block in named_blocks(model)]
    before = [block.fuse_on_the_fly for block in blocks]

    for block in blocks:
        block.fuse_on_the_fly = False
    try:
        yield
    finally:
        for block, fuse_on_the_fly in zip(blocks, before):
            block.fuse_on_the_fly = fuse_on_the_fly


@torch.no_grad()
def fused_conv(conv: nn.Conv2d, norm: _BatchNorm, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """The convolution with `kernel` and `bias` in the place of a branch of `conv` and `norm`.

    Geometry and padding mode are those of `conv`. Its weight is trainable where that of `conv` is, its bias where
    that of `norm` or of `conv` is. Dtype and device are those of the tensors.
    """
    with torch.device('meta'):  # allocates nothing: the fused tensors become the parameters
        fused = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups, padding_mode=conv.padding_mode)

    fused.weight = nn.Parameter(kernel, requires_grad=conv.weight.requires_grad)
    fused.bias = nn.Parameter(bias, requires_grad=_trains(norm.bias) or _trains(conv.bias))
    return fused


def scale_shift(norm: _BatchNorm, dtype: torch.dtype) -> ScaleShift:
    """`scale_shift_of_norm` of a BatchNorm, computed in `dtype`."""
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    converted = (None if tensor is None else tensor.to(dtype) for tensor in tensors)
    return scale_shift_of_norm(*converted, norm.eps)


def _on_running_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and not norm.training and norm._buffers.get('running_mean') is not None


def _on_batch_statistics(norm: nn.Module) -> bool:
    """A plain BatchNorm in training, with running statistics to update and weights to train."""
    plain = isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm)
    return plain and norm.training and norm.running_mean is not None and norm.weight is not None


def _in_training(norm: _BatchNorm) -> Norm:
    """What `branch_sum` takes; counts the batch, as the norm's own forward does."""
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # a plain average over all batches
        momentum = 1 / norm.num_batches_tracked.item()
    return Norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, momentum, norm.eps)


def _is_computed_again() -> bool:
    """Whether this is no new step: activation checkpointing, here or around it, runs a forward pass in a backward."""
    return not is_compiling() and torch._C._current_graph_task_id() != -1


def _trains(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


def check_norm(name: str, norm: nn.Module) -> None:
    """Raise UserError, naming the layer, if `norm` is no BatchNorm with usable running statistics."""
    if not isinstance(norm, _BatchNorm):
        raise UserError(
            f'A RepVGG block fuses only if each branch ends in a BatchNorm, but {name} is {type(norm).__name__}. '
            "Use norm_cfg=dict(type='BN') or 'SyncBN', and convert before other tools fuse or replace the norms.")
    if norm.running_mean is None or norm.running_var is None:
        raise UserError(
            f'A RepVGG block fuses with running statistics, but {name} keeps none '
            f'(track_running_stats={norm.track_running_stats}). Build it with track_running_stats=True and train.')
    check_statistics(name, norm.running_mean, norm.running_var)


def check_statistics(name: str, mean: Tensor, var: Tensor) -> None:
    """Raise UserError, naming the layer, if a running mean is not finite or a variance is no variance."""
    if var.is_meta:
        return

    bad = ~(var >= 0) | ~mean.isfinite() | var.isinf()
    if bad.any():
        channel = int(bad.nonzero()[0])
        raise UserError(
            f'Running statistics must be finite and variances not negative, but {name} has mean '
            f'{mean[channel]:.3g} and variance {var[channel]:.3g} in channel {channel} '
            f'({int(bad.sum())} of {bad.numel()} channels are wrong). Use an earlier checkpoint: training diverged '
            'or the file is damaged.')
