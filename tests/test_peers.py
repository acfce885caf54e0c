"""Weights of the real timm and mmpretrain: theirs compute the same in our RepVGG, ours load strictly into theirs."""

from __future__ import annotations

import pytest
import torch
from tool_runs import run_peer
from torch import nn

from repvgg_mm import RepVGG, whole_model_convert
from repvgg_mm.block import branch_by_branch
from repvgg_mm.convert.compare import relative_error
from repvgg_mm.layouts import from_native

TIMM = {'repvgg_a0': 'A0', 'repvgg_a2': 'A2', 'repvgg_b1g4': 'B1g4', 'repvgg_b2g4': 'B2g4', 'repvgg_d2se': 'D2se'}
TOLERANCE = 1e-6


@torch.no_grad()
def features(model: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with branch_by_branch(model):
        return tuple(model.eval()(image))


def assert_same_features(found, expected) -> None:
    errors = [relative_error(*pair) for pair in zip(expected, found, strict=True)]
    assert len(errors) == 4 and max(errors) <= TOLERANCE, errors


def assert_same_kernels(ours: dict, theirs: dict) -> None:
    names = [name for name in ours if 'reparam' in name]
    assert len(names) > 40 and set(names) == {name for name in theirs if 'reparam' in name}
    assert max(relative_error(theirs[name], ours[name]) for name in names) <= TOLERANCE


@pytest.mark.parametrize('name', TIMM)
def test_timms_weights_compute_the_same_here_and_ours_there(name, tmp_path):
    run_peer('tests/programs/timm_reference.py', 'make', name, tmp_path)
    theirs = torch.load(tmp_path / 'theirs.pth', weights_only=True)
    model, converted = RepVGG(TIMM[name]), RepVGG(TIMM[name], deploy=True)
    for weights, prefix, ours in (
            ('features_only', '', model), ('features_only', 'backbone.timm_model.', model), ('plain', '', model),
            ('deploy', '', converted)):
        ours.load_state_dict({prefix + key: tensor for key, tensor in theirs[weights].items()}, strict=True)
        assert_same_features(features(ours, theirs['image']), theirs[f'{weights}_features'])
    converted.load_state_dict(theirs['plain'])  # fused while loading
    assert_same_kernels(from_native(converted.state_dict(), 'timm'), theirs['deploy'])

    torch.save(from_native(model.state_dict(), 'timm'), tmp_path / 'ours-training.pth')
    torch.save(from_native(converted.state_dict(), 'timm'), tmp_path / 'ours-deploy.pth')
    run_peer('tests/programs/timm_reference.py', 'check', name, tmp_path)
    checked = torch.load(tmp_path / 'checked.pth', weights_only=True)
    assert_same_features(features(model, theirs['image']), checked['ours-training'])
    assert_same_features(features(converted, theirs['image']), checked['ours-deploy'])


@pytest.mark.stack
@pytest.mark.parametrize('arch', ['A0', 'B1g2', 'B1g4', 'D2se'])
def test_mmpretrains_weights_compute_the_same_here_and_ours_there(arch, tmp_path):
    run_peer('tests/programs/mmpretrain_reference.py', 'make', arch, tmp_path)
    theirs = torch.load(tmp_path / 'theirs.pth', weights_only=True)
    model, converted = RepVGG(arch), RepVGG(arch, deploy=True)
    model.load_state_dict(theirs['training'], strict=True)
    assert_same_features(features(model, theirs['image']), theirs['features'])
    converted.load_state_dict(theirs['training'])  # fused while loading
    if 'deploy' in theirs:
        assert_same_kernels(converted.state_dict(), theirs['deploy'])
    torch.save(model.state_dict(), tmp_path / 'ours-training.pth')
    if 'deploy' in theirs:
        converted.load_state_dict(theirs['deploy'], strict=True)
        assert_same_features(features(converted, theirs['image']), theirs['deploy_features'])
        converted = whole_model_convert(model)
        torch.save(converted.state_dict(), tmp_path / 'ours-deploy.pth')

    run_peer('tests/programs/mmpretrain_reference.py', 'check', arch, tmp_path)
    for name, found in torch.load(tmp_path / 'checked.pth', weights_only=True).items():
        assert_same_features(found, features(model if name == 'ours-training' else converted, theirs['image']))
