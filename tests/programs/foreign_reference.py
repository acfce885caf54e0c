"""Run where mmpretrain and timm are: convert models of theirs and write the worst relative error of each, as JSON."""

import copy
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

sys.path += [str(Path(__file__).parents[1])]

from helpers import image, randomise_norms

from repvgg_mm import FusedBlock, RepVGG, whole_model_convert
from repvgg_mm.convert.compare import relative_error
from repvgg_mm.convert.foreign import named_foreign_blocks

# With statistics drawn at random these nets, with SE, amplify the rounding of float32 a million times.
AMPLIFYING = ('timm repvgg_d2se', 'mmpretrain MobileOne s4')


def models():
    import timm
    from mmengine.registry import MODELS
    from mmpretrain.models import MobileOne, RepLKNet
    from mmpretrain.models import RepVGG as MMPretrainRepVGG
    yield 'mmpretrain A0', MMPretrainRepVGG('A0', out_indices=(0, 1, 2, 3))
    yield 'mmpretrain B1g2', MMPretrainRepVGG('B1g2', out_indices=(3,))
    yield 'mmpretrain D2se', MMPretrainRepVGG('D2se', out_indices=(3,))
    yield 'mmpretrain MobileOne s0', MobileOne('s0', out_indices=(0, 1, 2, 3))
    yield 'mmpretrain MobileOne s4', MobileOne('s4', out_indices=(3,))
    yield 'mmpretrain RepLKNet', RepLKNet(
        dict(large_kernel_sizes=[13, 11, 9, 7], layers=[1, 1, 1, 1], channels=[8, 16, 24, 32], small_kernel=5,
             dw_ratio=1), out_indices=(0, 1, 2, 3))
    yield 'timm repvgg_a0', timm.create_model('repvgg_a0', features_only=True)
    yield 'timm repvgg_d2se', timm.create_model('repvgg_d2se')
    yield 'timm mobileone_s0', timm.create_model('mobileone_s0')
    yield 'timm fastvit_t8', timm.create_model('fastvit_t8', features_only=True)
    yield 'timm fastvit_sa12', timm.create_model('fastvit_sa12')
    yield 'mmseg TIMMBackbone', MODELS.build(dict(
        type='mmseg.TIMMBackbone', model_name='repvgg_a0', features_only=True, pretrained=False))
    yield 'two libraries', nn.ModuleDict(dict(
        theirs=MMPretrainRepVGG('A0', out_indices=(0,)), timm=timm.create_model('mobileone_s0', features_only=True),
        ours=RepVGG('A0', out_indices=(0,))))


class Together(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        return [part(x) for part in self.parts.values()]


def settle_statistics(model):
    """Running statistics of a batch of noise."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.9
    model.train()
    model(image(4, 3, 64, 64, dtype=torch.float32, seed=3))


def flat(out):
    return [out] if isinstance(out, torch.Tensor) else [tensor for part in out or () for tensor in flat(part)]


@torch.no_grad()
def errors_of(name, model, settle=False, mentioned=()):
    """Worst relative error of each output in float32, SyncBN included, and in float64; warns of `mentioned` alone.

    With `settle`, running statistics are those of a batch of noise.
    """
    x = image(1, 3, 64, 64, dtype=torch.float32)
    randomise_norms(model)
    if settle:
        settle_statistics(model)
    model.eval()  # mmpretrain's returns None
    exact = copy.deepcopy(model).double()
    expected = flat(exact(x.double()))
    errors = {}
    for dtype, suffix in ((torch.float32, ''), (torch.float64, ' float64')):
        trained = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)) if dtype == torch.float32 else model
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            deploy = whole_model_convert(copy.deepcopy(trained).to(dtype))
        unknown = [str(warning.message) for warning in caught if 'nothing says how' in str(warning.message)]
        assert len(unknown) == bool(mentioned), unknown
        assert all(unknown[0].count(each) == 1 for each in mentioned), unknown
        assert not any(True for _ in named_foreign_blocks(deploy))
        norms = [module for part in deploy.modules() if isinstance(part, FusedBlock) for module in part.modules()
                 if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert not norms and any(isinstance(module, FusedBlock) for module in deploy.modules())
        found = flat(deploy(x.to(dtype)))
        errors[name + suffix] = max(relative_error(*pair) for pair in zip(expected, found, strict=True))
    if name == 'mmpretrain D2se':
        ours = RepVGG('D2se', out_indices=(3,), deploy=True).double().eval()
        ours.load_state_dict(deploy.state_dict(), strict=True)
        errors[f'{name} in ours float64'] = relative_error(expected[0], ours(x.double())[0])
    return errors


def main():
    errors = {}
    for name, model in models():
        if type(model) is nn.ModuleDict:  # timm's feature extractors are subclasses
            model = Together(model)
        errors.update(errors_of(name, model, settle=name in AMPLIFYING))
    Path(sys.argv[1]).write_text(json.dumps(errors))


if __name__ == '__main__':
    main()
