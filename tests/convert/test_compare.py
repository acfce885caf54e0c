"""The comparison sees what it must see, and leaves the models as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import TINY, assert_same_state, backbone, image, pspnet, retinanet, snapshot, two_stage
from torch import nn

from repvgg_mm import compare_models, whole_model_convert
from repvgg_mm.convert.compare import OutputErrors, relative_error

X = image(2, 3, 64, 64)
FIRST_STAGE = [f"output['rpn_head'][{i}][{j}]" for i in range(2) for j in range(5)]


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize('build, head', [
    (pspnet, ['output']), (retinanet, [f'output[{i}][{j}]' for i in range(2) for j in range(5)]),
    (lambda: two_stage('fasterrcnn'), FIRST_STAGE + ["output['roi_head'][0]", "output['roi_head'][1]"]),
    (lambda: two_stage('maskrcnn'), FIRST_STAGE + [f"output['roi_head'][{i}]" for i in range(3)])])
def test_every_output_is_compared(build, head):
    model = build().double()
    errors = compare_models(model, whole_model_convert(model), X)
    assert list(errors) == [f'backbone[{i}]' for i in range(4)] + head
    assert max(errors.values()) <= 1e-10


def test_a_model_has_no_error_against_itself():
    model = backbone().double()
    assert compare_models(model, model, X) == {f'output[{i}]': 0. for i in range(4)}


class Siamese(nn.Module):
    """One backbone called twice, as change detection does."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = nn.ConvTranspose2d(64, 2, 4, 2, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[3] - self.backbone(x.flip(3))[3])


class RGBD(nn.Module):
    """Two backbones that take other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth = backbone(), backbone(in_channels=1)

    def forward(self, image, depth):
        return [a + b for a, b in zip(self.colour(image), self.depth(depth))]


def test_every_call_of_a_backbone_is_compared():
    model = Siamese().double().eval()
    errors = compare_models(model, whole_model_convert(model), X)
    assert list(errors) == [f'backbone{call}[{i}]' for call in ('', '#2') for i in range(4)] + ['output']
    assert errors.worst <= 1e-10


def test_two_backbones_of_other_inputs():
    model = RGBD().double().eval()
    errors = compare_models(model, whole_model_convert(model), X, X[:, :1])
    assert len(errors) == 12 and errors.worst <= 1e-10


@pytest.mark.parametrize('where', ['weight', 'bias'])
@pytest.mark.parametrize('layer, unaffected', [('stem', 0), ('stage_2.1', 1), ('stage_4.0', 3)])
def test_a_perturbed_kernel_is_found(where, layer, unaffected):
    model = pspnet().double()
    converted = whole_model_convert(model)
    with torch.no_grad():
        getattr(converted.backbone.get_submodule(layer).branch_reparam, where).add_(1e-4)
    errors = compare_models(model, converted, X)
    assert max(list(errors.values())[:unaffected], default=0) <= 1e-10
    assert min(errors[f'backbone[{i}]'] for i in range(unaffected, 4)) > 1e-8
    assert errors['output'] > 1e-8


def test_a_perturbed_head_is_found():
    model = pspnet().double()
    converted = whole_model_convert(model)
    with torch.no_grad():
        converted.decode_head.conv_seg.bias[1] += 1e-3
    errors = compare_models(model, converted, X)
    assert max(errors[f'backbone[{i}]'] for i in range(4)) <= 1e-10
    assert errors['output'] > 1e-8


@pytest.mark.parametrize('part, found', [
    ('rpn_head.rpn_conv', 'rpn_head'), ('rpn_head.rpn_reg', 'rpn_head'),
    ('roi_head.bbox_head.shared_fcs.0', 'roi_head'), ('roi_head.bbox_head.fc_reg', 'roi_head'),
    ('roi_head.mask_head.convs.2.conv', 'roi_head'),
    ('roi_head.mask_head.conv_logits', 'roi_head'), ('neck.fpn_convs.0.conv', 'r')])
def test_a_perturbed_stage_of_a_two_stage_detector_is_found(part, found):
    model = two_stage('maskrcnn').double()
    converted = whole_model_convert(model)
    with torch.no_grad():
        converted.get_submodule(part).weight.flatten()[0] += 1e-2
    errors = compare_models(model, converted, X)
    wrong = [name for name, error in errors.items() if error > 1e-10]
    assert wrong and all(name.startswith(f"output['{found}") for name in wrong)
    assert max(errors[name] for name in wrong) > 1e-6


def test_the_reference_is_the_sum_of_branches():
    """A fused reference would share its mistakes with what it is compared with."""
    model = backbone()
    calls = []
    model.stem.branch_1x1.register_forward_hook(lambda *_: calls.append('branch_1x1'))
    compare_models(model, whole_model_convert(model), X.float())
    assert calls == ['branch_1x1']


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('in_reference', [True, False])
def test_an_output_that_is_not_finite_is_infinitely_wrong(value, in_reference):
    model = backbone()
    converted = whole_model_convert(model)
    broken = model.stage_3[0].branch_1x1.norm.bias if in_reference else converted.stage_3[0].branch_reparam.bias
    with torch.no_grad():
        broken[0] = value
    errors = list(compare_models(model, converted, X.float()).values())
    assert max(errors[:2]) <= 1e-5
    assert errors[2] == float('inf')


def test_both_outputs_not_finite():
    nan = torch.tensor([1., float('nan')])
    assert relative_error(nan, nan) == float('inf')


@pytest.mark.parametrize('expected, actual, error', [
    ([4., -8.], [4., -8.], 0.), ([4., -8.], [4., -6.], 0.25), ([4., -8.], [5., -8.], 0.125), ([0., 0.], [0., 0.], 0.),
    ([0., 0.], [1e-30, 0.], float('inf'))])
def test_relative_error(expected, actual, error):
    assert relative_error(torch.tensor(expected), torch.tensor(actual)) == error


@pytest.mark.parametrize('training', [True, False])
def test_models_are_left_as_they_were(training):
    model, other = pspnet(norm_eval=True).train(training), pspnet().train(not training)
    model.decode_head.eval()
    before = [(modes(m), snapshot(m)) for m in (model, other)]
    compare_models(model, other, X.float())
    for m, (modes_before, state_before) in zip((model, other), before):
        assert modes(m) == modes_before
        assert_same_state(m, state_before)
        assert not any(module._forward_hooks for module in m.modules())
        assert all(block.fuse_on_the_fly for block in m.modules() if hasattr(block, 'fuse_on_the_fly'))


def test_models_are_left_as_they_were_after_an_error():
    model = pspnet().train()
    before = modes(model)
    with pytest.raises(RuntimeError, match='to have 3 channels'):
        compare_models(model, copy.deepcopy(model), torch.zeros(2, 5, 64, 64))
    assert modes(model) == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(block.fuse_on_the_fly for block in model.modules() if hasattr(block, 'fuse_on_the_fly'))


def test_other_shapes_are_an_error():
    with pytest.raises(ValueError, match=r'the shapes differ: .*Compare a model with its own deploy form'):
        compare_models(backbone(TINY), backbone(dict(TINY, width_factors=(0.25,) * 4)), X.float())


def test_other_outputs_are_an_error():
    with pytest.raises(ValueError, match=r'compared output by output'):
        compare_models(backbone(TINY), backbone(TINY, out_indices=(0, 1)), X.float())


def test_errors_print_as_a_table_with_a_verdict():
    same, other = OutputErrors({'backbone[0]': 2e-7, 'output': 1e-6}), OutputErrors(output=1e-3)
    assert same == {'backbone[0]': 2e-7, 'output': 1e-6} and same.worst == 1e-6
    assert str(same).splitlines() == [
        'backbone[0]  relative error 2.0e-07', 'output       relative error 1.0e-06',
        'equal: 1.0e-06 at most, 1e-05 is what rounding in float32 explains']
    assert str(other).splitlines()[-1].startswith('NOT EQUAL: 1.0e-03')
    assert 'NOT EQUAL' in str(OutputErrors(output=float('inf')))


@pytest.mark.parametrize('scale', [1e-6, 1e-3, 1., 1e3])
def test_the_error_is_relative_at_every_scale(scale):
    expected = torch.tensor([1., -4., 2.], dtype=torch.float64) * scale
    actual = torch.tensor([1., -4., 2.5], dtype=torch.float64) * scale
    assert relative_error(expected, actual) == pytest.approx(0.125, rel=1e-12)
