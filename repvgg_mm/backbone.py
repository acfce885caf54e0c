"""RepVGG as a backbone for segmentors and detectors: a stem, then stages, each a plain stack of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .archs import get_arch
from .block import RepVGGBlock, fuse_blocks
from .errors import UserError
from .pretrained import Fit, fit_to_backbone
from .registry import register


@register
class RepVGG(BaseModule):
    """RepVGG (arXiv 2101.03697), from images (N, in_channels, H, W) to a tuple of feature maps.

    With the default strides, stage i (from 0) gives (N, C_i, H / 2**(i + 2), W / 2**(i + 2)), sizes
    rounded up. Names in the state dict are mmpretrain's.

    Args:
        arch: a variant's name, or a dict with `depths`, `width_factors` and, if wanted, `groups`
            and `se_ratio` (see `archs.Arch`).
        in_channels: channels of the input.
        out_indices: stages to return, in this order; negative ones count from the last. Stages past
            the last one needed are not built.
        strides: stride of each stage's first block. Output stride 8 is (2, 2, 1, 1).
        dilations: of each stage, an int or one int a block. `fast_dilations` gives the paper's
            fast variant.
        frozen_stages: -1 for none, 0 for the stem, n for the stem and n stages. Frozen parameters
            have requires_grad=False from construction on, frozen norms stay on running statistics.
        norm_eval: keep every norm on running statistics while training.
        with_cp: trade time for memory in training; running statistics are updated once.
        norm_cfg: BN or SyncBN; other norms cannot be fused.
        act_cfg: activation of every block.
        deploy: build the deploy form, to load a converted checkpoint into.
        pretrained: path or URL of weights, short for init_cfg=dict(type='Pretrained', checkpoint=...).
        init_cfg: initialisation as in every OpenMMLab model; torch's own without one.
        partial_load: accept weights that cover a part of the backbone; the rest keeps its values.

    Loading, by whatever route, takes official, mmpretrain's and timm's names, both forms and leading
    prefixes (see `pretrained.fit_to_backbone`), and either fits completely or raises UserError.

    Raises:
        UserError: an argument that no RepVGG has, with what it may be.
    """

    def __init__(
        self,
        arch: str | Mapping,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        strides: Sequence[int] = (2, 2, 2, 2),
        dilations: Sequence[int | Sequence[int]] = (1, 1, 1, 1),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        norm_cfg: Mapping = dict(type='BN'),
        act_cfg: Mapping = dict(type='ReLU'),
        deploy: bool = False,
        pretrained: str | None = None,
        init_cfg: Mapping | list | None = None,
        partial_load: bool = False,
    ) -> None:
        if pretrained is not None:
            if init_cfg is not None:
                raise UserError(f'Weights come from pretrained or from init_cfg, got {pretrained!r} and {init_cfg}. '
                                'Remove one of the two.')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(init_cfg)
        self.arch = get_arch(arch)
        num_stages = len(self.arch.depths)
        self.out_indices = _normalise_indices(out_indices, num_stages)
        if len(strides) != num_stages or not all(isinstance(stride, int) and stride >= 1 for stride in strides):
            raise UserError(f'strides needs an int of 1 or more for each of the {num_stages} stages, got '
                            f'{tuple(strides)}. The default is {(2,) * num_stages}.')
        dilations = _dilations_of_blocks(dilations, self.arch.depths)
        num_built = max(self.out_indices) + 1
        if not -1 <= frozen_stages <= num_built:
            raise UserError(f'frozen_stages must be from -1 (none) to {num_built} (all stages that out_indices='
                            f'{tuple(out_indices)} needs), got {frozen_stages}. Choose one in that range.')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        norm = _norm_builder(norm_cfg)
        self.norm_cfg = dict(norm_cfg)
        self.partial_load = partial_load

        block = partial(
            RepVGGBlock,
            norm=norm,
            act=partial(build_activation_layer, dict(act_cfg)),
            se_after_act=self.arch.se_after_act,
            with_cp=with_cp,
            deploy=deploy)
        self.stages = [f'stage_{stage}' for stage in range(1, num_built + 1)]
        strides, dilations = (2, *strides), [(1,), *dilations]  # from here on the stem is stage 0
        for stage, shapes in groupby(self.arch.blocks(in_channels), attrgetter('stage')):
            if stage > num_built:
                break
            blocks = [block(shape.in_channels, shape.out_channels,
                            stride=strides[stage] if shape.index == 0 else 1,
                            dilation=dilations[stage][shape.index],
                            groups=shape.groups,
                            identity=shape.identity,
                            se_channels=shape.se_channels) for shape in shapes]
            if stage == 0:
                self.stem = blocks[0]
            else:
                self.add_module(self.stages[stage - 1], nn.Sequential(*blocks))
        self._freeze_stages()

    @property
    def deploy(self) -> bool:
        """Whether every block is in deploy form."""
        return all(module.deploy for module in self.modules() if isinstance(module, RepVGGBlock))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # N, in_channels, H, W
        contiguous = x.is_contiguous() and next(self.stem.parameters()).is_contiguous()
        x = self.stem(x)
        features = []
        for name in self.stages:
            x = getattr(self, name)(x)                   # N, C_i, H_i, W_i
            features.append(x)
        wanted = [features[i] for i in self.out_indices]
        return tuple(_contiguous(feature) if contiguous else feature for feature in wanted)

    def switch_to_deploy(self) -> None:
        """Fuse every block; does nothing in deploy form.

        Raises:
            UserError: a block cannot be fused, named; the backbone is then unchanged.
        """
        fuse_blocks(self)

    def init_weights(self) -> None:
        try:
            super().init_weights()
        except AssertionError as error:  # mmengine's answer to a prefix that no name in the file has
            raise UserError(f"init_cfg's prefix selects tensors of a file, and {error}: {self.init_cfg}. Leave prefix "
                            'out: RepVGG finds itself in a file.') from None

    def fit(self, checkpoint: Mapping) -> Fit:
        """`fit_to_backbone` for this backbone."""
        return fit_to_backbone(checkpoint, self.state_dict(), self.arch,
                               eps=self.norm_cfg.get('eps', 1e-5), partial=self.partial_load)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        # torch's load_state_dict and mmengine's both pass here before they load the blocks.
        own = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        tensors, summary = self.fit({name.removeprefix(prefix): value for name, value in own.items()})
        state_dict.update({prefix + name: tensor for name, tensor in tensors.items()})
        print_log(summary, logger='current')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> RepVGG:
        super().train(mode)
        frozen = [self] if self.norm_eval else self._frozen_modules()
        for parent in frozen:
            for module in parent.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stem, *(getattr(self, name) for name in self.stages[:self.frozen_stages])]

    def _freeze_stages(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)


def fast_dilations(arch: str | Mapping) -> tuple[int | tuple[int, ...], ...]:
    """`dilations` of the paper's fast variant (section 4.3) for output stride 8.

    Only the last four blocks of stage 3 and the one of stage 4 are dilated.

    Raises:
        UserError: an architecture without four stages, the third of four blocks or more.
    """
    depths = get_arch(arch).depths
    if len(depths) != 4 or depths[2] < 4:
        raise UserError('The fast variant dilates the last four blocks of stage 3 and stage 4, and this '
                        f'architecture has stages of {tuple(depths)} blocks. Write its dilations out.')
    depth = depths[2]
    return 1, 1, (1,) * (depth - 4) + (2,) * 4, 4


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
    if isinstance(out_indices, int) or not out_indices or any(
            not -num_stages <= index < num_stages for index in out_indices):
        raise UserError(f'out_indices needs one or more integers from {-num_stages} to {num_stages - 1}, one a stage; '
                        f'got {out_indices}. The default is {tuple(range(num_stages))}.')
    return tuple(index % num_stages for index in out_indices)


def _dilations_of_blocks(
    dilations: Sequence[int | Sequence[int]], depths: Sequence[int]
) -> list[tuple[int, ...]]:
    if len(dilations) == len(depths):
        expanded = [(entry,) * depth if isinstance(entry, int) else tuple(entry)
                    for entry, depth in zip(dilations, depths)]
        if [len(entry) for entry in expanded] == list(depths) and all(
                isinstance(dilation, int) and dilation >= 1 for entry in expanded for dilation in entry):
            return expanded
    raise UserError('dilations needs one entry a stage, an int of 1 or more or one a block, for stages of '
                    f'{tuple(depths)} blocks; got {tuple(dilations)}. The default is {(1,) * len(depths)}.')


def _norm_builder(norm_cfg: Mapping) -> Callable[[int], nn.Module]:
    if not isinstance(norm_cfg, Mapping) or 'type' not in norm_cfg:
        raise UserError(f"norm_cfg describes a BatchNorm, got {norm_cfg!r}. Give dict(type='BN') or 'SyncBN'.")
    return lambda channels: build_norm_layer(dict(norm_cfg), channels)[1]
