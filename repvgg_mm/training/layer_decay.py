"""Layer-wise learning rate decay in any toolbox: early layers learn more slowly."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..errors import UserError

PREFIX = 'backbone.'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, with each learning rate times rate**(num_layers - 1 - depth).

    The rate is `paramwise_cfg['layer_decay_rate']`; depth and number of layers of a parameter are what the backbone's
    `get_layer_depth(name, 'backbone.')` says, as in mmpretrain: 0 for the stem, num_layers - 1 for a head. Everything
    else in `paramwise_cfg` means what it means without decay, `lr_mult` included.

    Raises:
        UserError: the rate is not a number above 0 and up to 1, the optimizer has no learning rate to multiply, or the
            model has no backbone with `get_layer_depth`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise UserError(
                'Layer-wise learning rate decay has a rate above 0 and up to 1, got '
                f'paramwise_cfg.layer_decay_rate={self.rate!r}. Set it to 0.9, for example.')
        if self.base_lr is None:
            raise UserError(
                'Layer-wise learning rate decay multiplies the learning rate of the config, and optimizer='
                f'{dict(self.optimizer_cfg)} has none. Write its lr out.')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: object) -> None:
        """Add a group for each parameter of `module`; called again by itself, with a prefix, for every submodule."""
        super().add_params(params, module, prefix, **kwargs)
        if not prefix:
            self._decay(params, module)

    def _decay(self, groups: list[dict], model: nn.Module) -> None:
        """Multiply the learning rates of groups of one parameter each."""
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise UserError(
                'Layer-wise learning rate decay asks model.backbone.get_layer_depth for the layer of each parameter, '
                f'and the backbone of this {type(model).__name__} is {type(backbone).__name__}, without that method. '
                'Use a backbone that has it, such as RepVGG, or remove optim_wrapper.constructor.')

        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in groups:
            parameter, = group['params']
            depth, num_layers = backbone.get_layer_depth(names[parameter], PREFIX)
            group['lr'] = group.get('lr', self.base_lr) * self.rate**(num_layers - 1 - depth)
