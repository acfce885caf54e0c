"""The plain stack of blocks that a RepVGG is: a stem, then stages. Torch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .archs import Arch, BlockShape, get_arch
from .block import RepVGGBlock, fuse_blocks
from .errors import UserError
from .pretrained import Fit, fit_to_backbone

STEM_STRIDE = 2


class Stages(nn.Module):
    """From images (N, in_channels, H, W) to the feature maps of the stages `out_indices`, a tuple.

    A subclass calls `build_stages` once in its constructor. `arch` is its `Arch`, `stages` the names of its stages.
    """

    partial_load = False
    norm_eps = 1e-5

    def build_stages(
        self,
        arch: Arch,
        in_channels: int,
        out_indices: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int | Sequence[int]],
        block: Callable[..., RepVGGBlock],
    ) -> None:
        """Make `stem`, `stage_1`, ... up to the last stage that `out_indices` needs, in the order of computation.

        `block` makes a block from channels, stride, dilation, groups, identity and se_channels.

        Raises:
            UserError: indices, strides or dilations that the architecture does not have.
        """
        num_stages = len(arch.depths)
        self.arch = arch
        self.out_indices = _normalise_indices(out_indices, num_stages)
        _check_strides(strides, num_stages)
        dilations = _dilations_of_blocks(dilations, arch.depths)

        def build(shape: BlockShape, stride: int, dilation: int) -> RepVGGBlock:
            return block(
                shape.in_channels,
                shape.out_channels,
                stride=stride,
                dilation=dilation,
                groups=shape.groups,
                identity=shape.identity,
                se_channels=shape.se_channels)

        stem, *shapes = arch.blocks(in_channels)
        self.stem = build(stem, STEM_STRIDE, dilation=1)

        self.stages = []
        for stage in range(max(self.out_indices) + 1):
            blocks = []
            for shape in shapes:
                if shape.stage == stage + 1:  # the stem is stage 0
                    stride = strides[stage] if shape.index == 0 else 1
                    blocks.append(build(shape, stride, dilations[stage][shape.index]))

            name = f'stage_{stage + 1}'
            self.add_module(name, nn.Sequential(*blocks))
            self.stages.append(name)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the feature maps, in the order of `out_indices`: what a neck or head takes."""
        return tuple(self.arch.stage_channels[index] for index in self.out_indices)

    @property
    def deploy(self) -> bool:
        """Whether every block is in deploy form."""
        return all(module.deploy for module in self.modules() if isinstance(module, RepVGGBlock))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # N, in_channels, H, W
        if x.dim() != 4:
            raise UserError(
                f'Images are (N, channels, height, width), got {tuple(x.shape)}. Give a single image as a batch of '
                'one, frames of a video as images: (N, T, C, H, W) becomes (N * T, C, H, W).')

        contiguous = x.is_contiguous() and next(self.stem.parameters()).is_contiguous()
        x = self.stem(x)
        features = []
        for name in self.stages:
            x = getattr(self, name)(x)                   # N, C_i, H_i, W_i
            features.append(x)

        wanted = [features[i] for i in self.out_indices]
        if contiguous:
            wanted = [_contiguous(feature) for feature in wanted]
        return tuple(wanted)

    def switch_to_deploy(self) -> None:
        """Fuse every block; does nothing in deploy form.

        Raises:
            UserError: a block cannot be fused, named; the backbone is then unchanged.
        """
        fuse_blocks(self)

    def fit(self, checkpoint: Mapping) -> Fit:
        """`fit_to_backbone` for this backbone."""
        return fit_to_backbone(
            checkpoint, self.state_dict(), self.arch, eps=self.norm_eps, partial=self.partial_load)


def fast_dilations(arch: str | Mapping) -> tuple[int | tuple[int, ...], ...]:
    """`dilations` of the paper's fast variant (section 4.3) for output stride 8.

    Only the last four blocks of stage 3 and the one of stage 4 are dilated.

    Raises:
        UserError: an architecture without four stages, the third of four blocks or more.
    """
    depths = get_arch(arch).depths
    if len(depths) != 4 or depths[2] < 4:
        raise UserError(
            'The fast variant dilates the last four blocks of stage 3 and stage 4, and this '
            f'architecture has stages of {tuple(depths)} blocks. Write its dilations out.')

    stage_3 = (1,) * (depths[2] - 4) + (2,) * 4
    return 1, 1, stage_3, 4


def _contiguous(feature: Tensor) -> Tensor:
    """`feature` for heads that take nothing else (mmcv's RoIAlign), where blocks have gone over to channels_last.

    Its gradient returns in channels_last, so that adding it to that of the next stage is fast.
    """
    if feature.is_contiguous():
        return feature

    feature = feature.contiguous()
    if feature.requires_grad:
        feature.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return feature


def _normalise_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    allowed = range(-num_stages, num_stages)
    if isinstance(out_indices, int) or not out_indices or any(index not in allowed for index in out_indices):
        raise UserError(
            f'out_indices needs one or more integers from {-num_stages} to {num_stages - 1}, one a stage; '
            f'got {out_indices}. The default is {tuple(range(num_stages))}.')
    return tuple(index % num_stages for index in out_indices)


def _check_strides(strides: Sequence[int], num_stages: int) -> None:
    if len(strides) != num_stages or not all(map(_is_positive, strides)):
        raise UserError(
            f'strides needs an int of 1 or more for each of the {num_stages} stages, got '
            f'{tuple(strides)}. The default is {(2,) * num_stages}.')


def _dilations_of_blocks(
    dilations: Sequence[int | Sequence[int]], depths: Sequence[int]
) -> list[tuple[int, ...]]:
    """A tuple a stage, a number a block."""
    expanded = []
    for entry, depth in zip(dilations, depths):
        blocks = (entry,) * depth if isinstance(entry, int) else tuple(entry)
        if len(blocks) == depth and all(map(_is_positive, blocks)):
            expanded.append(blocks)

    if not len(expanded) == len(dilations) == len(depths):
        raise UserError(
            'dilations needs one entry a stage, an int of 1 or more or one a block, for stages of '
            f'{tuple(depths)} blocks; got {tuple(dilations)}. The default is {(1,) * len(depths)}.')
    return expanded


def _is_positive(number: object) -> bool:
    return isinstance(number, int) and number >= 1
