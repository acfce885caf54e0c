"""A RepVGG with torch alone: the same network as the registered backbone's, and the refusals of its shape."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import TINY, backbone, image, randomise_norms

from repvgg_mm import RepVGGBlock, UserError, fast_dilations
from repvgg_mm.archs import get_arch
from repvgg_mm.stages import Stages


def stages(out_indices=(0, 1, 2, 3), strides=(2, 2, 2, 2), dilations=(1, 1, 1, 1)) -> Stages:
    model = Stages()
    model.build_stages(get_arch(TINY), 3, out_indices, strides, dilations, partial(RepVGGBlock))
    return model


def test_it_is_the_backbone_without_mmengine():
    torch.manual_seed(0)
    model = randomise_norms(stages((1, 3), (2, 2, 1, 1), (1, 1, 2, 4))).eval()
    registered = backbone(out_indices=(1, 3), strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert list(model.state_dict()) == list(registered.state_dict())
    x = image(1, 3, 64, 48, dtype=torch.float32)
    for found, expected in zip(model(x), registered(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_it_fits_weights_of_another_layout_and_fuses():
    torch.manual_seed(0)
    model = randomise_norms(stages()).double().eval()
    before = model(image(1, 3, 64, 64))
    fit = model.fit({f'module.{name}': tensor for name, tensor in model.state_dict().items()})
    assert fit.summary.startswith('RepVGG: ') and set(fit.tensors) == set(model.state_dict())
    model.switch_to_deploy()
    assert model.deploy
    for found, expected in zip(model(image(1, 3, 64, 64)), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('arguments, message', [
    (dict(out_indices=(4,)), 'out_indices needs one or more integers from -4 to 3'),
    (dict(out_indices=2), 'out_indices needs one or more integers'),
    (dict(strides=(2, 2, 2)), 'strides needs an int of 1 or more for each of the 4 stages'),
    (dict(strides=(2, 2, 0, 1)), 'strides needs an int of 1 or more'),
    (dict(dilations=(1, 1, (1, 2), 1)), r'dilations needs one entry a stage.*stages of \(1, 2, 4, 1\) blocks'),
    (dict(dilations=(1, 1, 1)), 'dilations needs one entry a stage')])
def test_shapes_that_no_repvgg_has_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        stages(**arguments)


@pytest.mark.parametrize('indices', [(0, 1, 2, 3), (3, 1)])
def test_the_channels_that_a_neck_takes(indices):
    model = stages(indices).eval()
    maps = model(image(1, 3, 32, 32, dtype=torch.float32))
    assert model.out_channels == tuple(found.shape[1] for found in maps)


def test_negative_indices_count_from_the_last_stage():
    assert stages(out_indices=(-1, 0)).out_indices == (3, 0)


def test_the_fast_variant_dilates_five_layers():
    assert fast_dilations('B2') == (1, 1, (1,) * 12 + (2,) * 4, 4)


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 3, 4, 32, 32), (1, 4, 3, 32, 32)])
def test_an_input_that_is_no_batch_of_images(shape):
    with pytest.raises(UserError, match=r'Images are \(N, channels, height, width\), got .*frames of a video'):
        backbone(TINY)(torch.zeros(shape))
