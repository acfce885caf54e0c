"""RepVGG as a backbone for segmentors and detectors, in MMEngine's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .archs import get_arch
from .block import RepVGGBlock
from .errors import UserError
from .registry import register
from .stages import Stages

OTHER_NETWORKS = ('open-mmlab', 'torchvision', 'mmcls')  # hubs of weights for other backbones


@register
class RepVGG(Stages, BaseModule):
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
        super().__init__(_initialisation(pretrained, init_cfg))
        arch = get_arch(arch)
        self.norm_cfg = dict(norm_cfg) if isinstance(norm_cfg, Mapping) else norm_cfg
        self.partial_load = partial_load

        block = partial(
            RepVGGBlock,
            norm=_norm_builder(norm_cfg),
            act=partial(build_activation_layer, dict(act_cfg)),
            se_after_act=arch.se_after_act,
            with_cp=with_cp,
            deploy=deploy)
        self.build_stages(arch, in_channels, out_indices, strides, dilations, block)

        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        self._check_frozen_stages()
        self._freeze_stages()

    @property
    def norm_eps(self) -> float:
        """Of every BatchNorm."""
        return self.norm_cfg.get('eps', 1e-5)

    def init_weights(self) -> None:
        try:
            super().init_weights()
        except AssertionError as error:  # mmengine's answer to a prefix that no name in the file has
            raise UserError(
                f"init_cfg's prefix selects tensors of a file, and {error}: {self.init_cfg}. Leave prefix "
                'out: RepVGG finds itself in a file.') from None

    def train(self, mode: bool = True) -> RepVGG:
        super().train(mode)
        frozen = [self] if self.norm_eval else self._frozen_modules()
        for parent in frozen:
            for module in parent.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter's layer and the number of layers, for layer-wise learning rate decay.

        The stem is layer 0, every block behind it is one more, and all that is no part of the backbone, such as a
        head, is the last. `param_name` is a name in the whole model, where the backbone's begin with `prefix`.
        Both forms have the same layers; stages that were not built have none.
        """
        depths = [len(getattr(self, name)) for name in self.stages]
        num_layers = 1 + sum(depths) + 1  # the stem, the blocks, the head

        part, _, rest = param_name.removeprefix(prefix).partition('.')
        if not param_name.startswith(prefix) or part not in ('stem', *self.stages):
            return num_layers - 1, num_layers
        if part == 'stem':
            return 0, num_layers

        blocks_before = sum(depths[:self.stages.index(part)])
        block = int(rest.partition('.')[0])
        return 1 + blocks_before + block, num_layers

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        # torch's load_state_dict and mmengine's both pass here before they load the blocks.
        own = {}
        for name in list(state_dict):
            if name.startswith(prefix):
                own[name.removeprefix(prefix)] = state_dict.pop(name)

        tensors, summary = self.fit(own)
        for name, tensor in tensors.items():
            state_dict[prefix + name] = tensor
        print_log(summary, logger='current')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_frozen_stages(self) -> None:
        num_built = len(self.stages)
        if not -1 <= self.frozen_stages <= num_built:
            raise UserError(
                f'frozen_stages must be from -1 (none) to {num_built} (all stages that out_indices='
                f'{self.out_indices} needs), got {self.frozen_stages}. Choose one in that range.')

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        frozen = self.stages[:self.frozen_stages]
        return [self.stem, *(getattr(self, name) for name in frozen)]

    def _freeze_stages(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)


def _initialisation(pretrained: str | None, init_cfg: Mapping | list | None) -> Mapping | list | None:
    """`init_cfg`, or the one that `pretrained` is short for."""
    if pretrained is None:
        return init_cfg
    if init_cfg is not None:
        raise UserError(
            f'Weights come from pretrained or from init_cfg, got {pretrained!r} and {init_cfg}. '
            'Remove one of the two.')
    scheme, _, name = str(pretrained).partition('://')
    if scheme in OTHER_NETWORKS and 'repvgg' not in name.lower():
        raise UserError(
            f'RepVGG starts from weights of a RepVGG, and pretrained={pretrained!r} names another network, as a base '
            'config for ResNet hands it down. Set model.pretrained=None, or name a file of RepVGG weights.')
    return dict(type='Pretrained', checkpoint=pretrained)


def _norm_builder(norm_cfg: Mapping) -> Callable[[int], nn.Module]:
    if not isinstance(norm_cfg, Mapping) or 'type' not in norm_cfg:
        raise UserError(f"norm_cfg describes a BatchNorm, got {norm_cfg!r}. Give dict(type='BN') or 'SyncBN'.")

    def build(channels: int) -> nn.Module:
        _, norm = build_norm_layer(dict(norm_cfg), channels)
        return norm
    return build
