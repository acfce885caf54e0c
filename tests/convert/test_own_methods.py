"""A block's own fusing method is used where it was seen to be right, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import image, pspnet, randomise_norms
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.testing import assert_close

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.convert.own_methods import fused_by_own_methods, is_fused_by_own_method, method_of


class ConvNorm(nn.Module):
    """Returns its fused form."""

    def __init__(self, channels: int = 4, wrong: float = 0.) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.wrong = wrong

    def forward(self, x):
        return self.norm(self.conv(x))

    def fuse(self):
        conv = fuse_conv_bn_eval(self.conv, self.norm)
        conv.bias.data += self.wrong
        return conv


class Residual(nn.Module):
    """Changes itself, the block inside it included."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.inner, self.norm, self.wrong, self.fused = ConvNorm(), nn.BatchNorm2d(4), wrong, False

    def forward(self, x):
        return self.inner(x) if self.fused else self.norm(self.inner(x) + x)

    def switch_to_deploy(self):
        conv = self.inner.fuse()
        for channel in range(4):
            conv.weight.data[channel, channel, 1, 1] += 1
        self.inner = conv if self.wrong else fuse_conv_bn_eval(conv, self.norm)
        self.norm, self.fused = nn.Identity(), True


class NormLinear(nn.Sequential):
    """Takes rows, not images, and makes float32 layers whatever it is, as timm's do."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(6), nn.Linear(6, 3))

    def fuse(self):
        norm, linear = self
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        result = nn.Linear(6, 3)
        result.weight.data = linear.weight * scale
        result.bias.data = linear.bias + linear.weight @ (norm.bias - norm.running_mean * scale)
        return result


class Takes(nn.Module):
    """A method of that name that is another thing."""

    def __init__(self, outcome: object = None) -> None:
        super().__init__()
        self.norm, self.outcome = nn.BatchNorm2d(4), outcome

    def forward(self, x):
        return self.norm(x)

    def fuse(self, *features):
        if self.outcome is None:
            raise TypeError('needs features')
        return self.outcome


def model_of(*blocks: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(nn.Sequential(*blocks)).eval()


def test_a_method_that_returns_and_one_that_changes():
    model = model_of(ConvNorm(), Residual(), nn.ReLU()).double()
    before = copy.deepcopy(model)
    deploy = whole_model_convert(model)
    assert isinstance(deploy[0], nn.Conv2d) and isinstance(deploy[1], Residual) and deploy[1].fused
    assert all(is_fused_by_own_method(block) for block in deploy[:2])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deploy.modules())
    assert_close(deploy(image(1, 4, 9, 9)), before(image(1, 4, 9, 9)), rtol=1e-10, atol=1e-10)
    assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)


def test_converting_again_changes_nothing():
    deploy = whole_model_convert(model_of(ConvNorm(), Residual()))
    again = whole_model_convert(deploy)
    assert_close(again.state_dict(), deploy.state_dict(), rtol=0, atol=0)


def test_a_wrong_method_is_rolled_back_and_named():
    model = model_of(ConvNorm(), ConvNorm(wrong=1e-3)).double()
    with pytest.warns(UserWarning, match=r'Left as they are.*: 1 \(.*ConvNorm\)'):
        deploy = whole_model_convert(model)
    assert isinstance(deploy[0], nn.Conv2d) and isinstance(deploy[1], ConvNorm)
    assert_close(deploy(image(1, 4, 9, 9)), model(image(1, 4, 9, 9)), rtol=1e-10, atol=1e-10)


def test_where_the_outer_method_is_wrong_the_inner_one_is_used():
    model = model_of(Residual(wrong=True)).double()
    deploy = whole_model_convert(model)
    assert isinstance(deploy[0].inner, nn.Conv2d) and isinstance(deploy[0].norm, nn.BatchNorm2d)
    assert_close(deploy(image(1, 4, 9, 9)), model(image(1, 4, 9, 9)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_rows_and_the_dtype(dtype, bound):
    model = model_of(NormLinear()).to(dtype)
    x = torch.randn(5, 6, dtype=torch.float64).to(dtype)
    deploy = whole_model_convert(model)
    assert isinstance(deploy[0], nn.Linear) and deploy[0].weight.dtype == dtype
    assert_close(deploy(x), model(x), rtol=bound, atol=bound)


@pytest.mark.parametrize('outcome', [None, 3, 'text', nn.Identity(), nn.Conv2d(4, 4, 1)])
def test_a_method_that_is_another_thing_is_left_alone(outcome):
    model = model_of(Takes(outcome)).double()
    with pytest.raises(UserError, match='contains none, nor any other block that is known or fuses itself'):
        whole_model_convert(model)
    assert isinstance(model[0], Takes)


def test_the_proof_does_not_lean_on_the_weights_that_are_there():
    """With the statistics of a new norm a method that forgets the mean would pass."""
    class Forgetful(ConvNorm):
        def fuse(self):
            self.norm.running_mean.zero_()
            return super().fuse()

    torch.manual_seed(0)
    assert fused_by_own_methods(nn.Sequential(Forgetful()), ()) == ({}, [])


def test_our_own_blocks_are_no_concern_of_it():
    model = pspnet()
    assert method_of(model.backbone.stem) and method_of(model.backbone)
    assert fused_by_own_methods(model, ()) == ({}, [])


def test_the_mode_is_kept():
    model = model_of(ConvNorm(), Residual())
    model.train()
    fused, names = fused_by_own_methods(model, ())
    assert names == ['0', '1'] and all(result.training for result in fused.values())
