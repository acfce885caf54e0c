"""Exported graphs: deploy forms pass the check, every other form is refused, and nothing of the machine stays."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from helpers import TINY, TINY_GROUPED, TINY_SE, backbone, image, pspnet
from torch import nn

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.block import branch_by_branch
from repvgg_mm.export.onnx_graph import check_graph, count_convolutions, tidy, to_onnx

X = image(2, 3, 64, 80, dtype=torch.float32)
NAMES = [f'stage_{i}' for i in range(4)]


class Net(nn.Module):
    """A backbone in something: paths of modules then have a prefix."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = backbone

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model.backbone(image)


def deploy(arch=TINY) -> nn.Module:
    return Net(whole_model_convert(backbone(arch)))


@pytest.mark.parametrize('dynamic', [(), (0, 2, 3)])
@pytest.mark.parametrize('arch, more', [(TINY, 0), (TINY_GROUPED, 0), (TINY_SE, 2 * 9)])
def test_deploy_form(arch, more, dynamic):
    net = deploy(arch)
    counts = check_graph(to_onnx(net, X, NAMES, dynamic), net, count_convolutions(net, X))
    assert counts['Conv'] == 9 + more
    assert 'BatchNormalization' not in counts


def test_branches_exported_raw_are_refused():
    net = Net(backbone())
    with branch_by_branch(net):
        raw = to_onnx(net, X, NAMES)
        convolutions = count_convolutions(net, X)
    found = Counter(node.op_type for node in raw.graph.node)
    assert found['Add'] >= 9 and found['Conv'] == 18
    with pytest.raises(UserError, match=r'has at most 9 Conv, 0 .* and 0 Add .* this one has 18, \d+ and \d+'):
        check_graph(raw, deploy(), convolutions)


def test_branches_as_one_convolution_on_the_fly_are_refused():
    net = Net(backbone())
    with pytest.raises(UserError, match=r'convert the model first|torch cannot'):
        check_graph(to_onnx(net, X, NAMES), net, count_convolutions(net, X))


@pytest.mark.parametrize('operator', ['BatchNormalization', 'Add', 'Conv'])
def test_one_operator_too_many_is_refused(operator):
    net = deploy()
    graph = to_onnx(net, X, NAMES)
    relu = next(node for node in graph.graph.node if node.op_type == 'Relu')
    extra = copy.deepcopy(relu)
    extra.op_type = operator
    graph.graph.node.append(extra)
    with pytest.raises(UserError, match='The exported graph of a deploy form'):
        check_graph(graph, net, count_convolutions(net, X))


def test_a_convolution_too_many_elsewhere_is_refused():
    net = deploy()
    with pytest.raises(UserError, match='8 Conv in all; this one has 9, 0 and 0, and 9 in all'):
        check_graph(to_onnx(net, X, NAMES), net, count_convolutions(net, X) - 1)


def test_what_no_output_needs_is_left_out():
    class First(Net):
        def forward(self, image):
            return super().forward(image)[0]

    net = First(whole_model_convert(backbone(TINY)))
    assert check_graph(to_onnx(net, X, NAMES[:1]), net, count_convolutions(net, X))['Conv'] == 2


def test_the_same_convolution_of_the_same_values_is_there_once():
    class Twice(Net):
        def forward(self, image):
            return [a + b for a, b in zip(super().forward(image), super().forward(image))]

    net = Twice(whole_model_convert(backbone(TINY)))
    graph = to_onnx(net, X, NAMES)
    assert count_convolutions(net, X) == 18 and sum(node.op_type == 'Conv' for node in graph.graph.node) == 9


def test_shared_convolutions_count_each_time():
    conv = nn.Conv2d(3, 3, 3)
    assert count_convolutions(nn.Sequential(conv, nn.ReLU(), conv), X) == 2


def test_tidy_names_nodes_by_modules_and_drops_paths():
    graph = to_onnx(deploy(), X, NAMES)
    assert b'.py' in graph.SerializeToString()
    tidy(graph)
    names = [node.name for node in graph.graph.node]
    assert names[0] == 'backbone.stem.branch_reparam/conv2d'
    assert len(set(names)) == len(names)
    for word in (b'.py', b'stack_trace', b'site-packages'):
        assert word not in graph.SerializeToString()


def test_what_torch_cannot_export_is_said():
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[: int(x.sum())]

    with pytest.raises(UserError, match=r"writes the model in ONNX's operators, and torch cannot .* Use a head that"):
        to_onnx(Sorted(), X, ['out'])


def test_a_size_that_is_fixed_in_the_model_is_said():
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3 * 64 * 80)

    with pytest.raises(UserError, match='Export without --dynamic'):
        to_onnx(Fixed(), X, ['out'], dynamic=(0, 2, 3))


def test_a_whole_model_of_which_a_head_is_not_run():
    net = whole_model_convert(pspnet())
    assert check_graph(to_onnx(net, X, ['logits']), net, count_convolutions(net, X))['Conv'] == 15
