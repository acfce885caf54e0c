"""Suppression in PyTorch, ONNX Runtime and OpenVINO against mmcv's, ties and touching boxes included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from repvgg_mm.engine.openvino_file import openvino_core
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.export.suppression import keep_best, rows_at, suppress, suppress_by_class

EXACT = dict(rtol=0, atol=0)
CLASSES = 3


class Suppresses(nn.Module):
    """(N, C + 4, P): boxes above scores."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return suppress(x[:, :4].transpose(1, 2), x[:, 4:], self.threshold)


class Best(nn.Module):
    """The same, to the best `limit` of all pairs of box and class."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        boxes = x[:, :4].transpose(1, 2)
        scores, labels = x[:, 4:].max(1)
        kept = suppress_by_class(boxes, scores, labels, CLASSES, 0.5)
        return keep_best(boxes, kept, labels, self.limit)


def in_both_engines(network: nn.Module, example: Tensor, inputs: Tensor, file: Path) -> list[list[np.ndarray]]:
    """Outputs of a graph that takes any batch and any number of boxes."""
    names = ['kept'] if isinstance(network, Suppresses) else ['boxes', 'scores', 'labels']
    onnx.save(to_onnx(network, example, names, dynamic=(0, 2)), file)
    by_onnxruntime = onnxruntime.InferenceSession(file).run(None, {'image': inputs.numpy()})
    by_openvino = openvino_core().compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(inputs.numpy())
    return [by_onnxruntime, [by_openvino[i] for i in range(len(by_onnxruntime))]]


def random_boxes(images: int, count: int, score: torch.Tensor) -> Tensor:
    """On a coarse grid, so that many overlap by exactly 1/4, 1/2 or 3/5, and some are empty."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(30, (images, 2, count), generator=generator)
    sizes = torch.randint(20, (images, 2, count), generator=generator)
    return torch.cat([corners, corners + sizes, score], 1).float()


def distinct_scores(images: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(images, CLASSES * count, generator=generator).argsort(1)
    return order.reshape(images, CLASSES, count) / order.shape[1]


def equal_scores(images: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(-1, 5, (images, CLASSES, count), generator=generator) / 4


def kept_by_mmcv(x: Tensor, threshold: float) -> Tensor:
    """Class by class."""
    from mmcv.ops import nms
    kept = torch.zeros_like(x[:, 4:])
    for image, values in enumerate(x):
        boxes = values[:4].T.contiguous()
        for label, scores in enumerate(values[4:]):
            candidates = torch.nonzero(scores > 0)[:, 0]
            _, chosen = nms(boxes[candidates], scores[candidates].contiguous(), threshold)
            kept[image, label, candidates[chosen]] = scores[candidates[chosen]]
    return kept


@pytest.mark.parametrize('threshold', [0.0, 0.25, 0.5, 0.6])
def test_equals_mmcvs_in_each_engine(threshold, tmp_path):
    x = random_boxes(3, 200, distinct_scores(3, 200))
    expected = kept_by_mmcv(x, threshold)
    assert 0 < (expected > 0).sum() < (x[:, 4:] > 0).sum()
    network = Suppresses(threshold)
    torch.testing.assert_close(network(x), expected, **EXACT)
    for found, in in_both_engines(network, random_boxes(2, 50, equal_scores(2, 50)), x, tmp_path / 'nms.onnx'):
        torch.testing.assert_close(torch.from_numpy(found), expected, **EXACT)


@pytest.mark.parametrize('threshold', [0.25, 0.5, 0.6])
def test_of_equal_scores_each_engine_keeps_the_first_box(threshold, tmp_path):
    x = random_boxes(2, 200, equal_scores(2, 200))
    network = Suppresses(threshold)
    expected = network(x)
    for found, in in_both_engines(network, x, x, tmp_path / 'nms.onnx'):
        torch.testing.assert_close(torch.from_numpy(found), expected, **EXACT)


@pytest.mark.parametrize('boxes, threshold, kept', [
    ([[0, 0, 10, 10], [0, 0, 10, 5]], 0.5, [0, 1]),        # an IoU of exactly the threshold
    ([[0, 0, 10, 10], [0, 0, 10, 5.01]], 0.5, [0]),
    ([[0, 0, 10, 10], [10, 0, 20, 10]], 0.0, [0, 1]),      # they touch
    ([[0, 0, 10, 10], [9.99, 0, 20, 10]], 0.0, [0]),
    ([[5, 5, 5, 5], [5, 5, 5, 5]], 0.5, [0, 1]),           # empty: no overlap
    ([[0, 0, 10, 6], [0, 0, 10, 10]], 0.6, [0, 1])])       # 0.6 is rounded up in float32, and so is 6 / 10
def test_at_the_threshold(boxes, threshold, kept, tmp_path):
    x = torch.cat([torch.tensor(boxes).T, torch.tensor([[0.9, 0.8]])])[None]
    network = Suppresses(threshold)
    found = [network(x).numpy()]
    found += [outputs[0] for outputs in in_both_engines(network, x.repeat(2, 1, 2), x, tmp_path / 'nms.onnx')]
    for scores in found:
        assert np.flatnonzero(scores[0, 0]).tolist() == kept


def best_of(x: Tensor, limit: int, file: Path) -> Sequence[Sequence[Tensor]]:
    """In PyTorch and in both engines."""
    network = Best(limit)
    outputs = in_both_engines(network, x, x, file)
    return [network(x), *([torch.from_numpy(one) for one in engine] for engine in outputs)]


def test_more_than_the_limit_and_fewer(tmp_path):
    x = random_boxes(2, 60, distinct_scores(2, 60))
    kept = suppress_by_class(x[:, :4].transpose(1, 2), *x[:, 4:].max(1), CLASSES, 0.5)
    count = int((kept[0] > 0).sum())
    for limit in (count - 3, count + 40):
        for boxes, scores, labels in best_of(x, limit, tmp_path / 'best.onnx'):
            expected = kept[0].sort(descending=True).values[:limit]
            found = min(limit, count)
            torch.testing.assert_close(scores[0, :found], expected[:found], **EXACT)
            places = [int(torch.nonzero(x[0, 4:].amax(0) == score)[0, 0]) for score in scores[0, :found]]
            torch.testing.assert_close(boxes[0, :found], x[0, :4, places].T, **EXACT)
            torch.testing.assert_close(labels[0, :found], x[0, 4:, places].argmax(0), **EXACT)
            assert scores.shape == (2, limit) and labels.dtype == torch.int64
            assert not boxes[0, found:].any() and not scores[0, found:].any() and (labels[0, found:] == -1).all()


def test_nothing_found(tmp_path):
    x = random_boxes(2, 30, torch.zeros(2, CLASSES, 30))
    for boxes, scores, labels in best_of(x, 5, tmp_path / 'best.onnx'):
        assert not boxes.any() and not scores.any() and (labels == -1).all()
        assert (boxes.shape, scores.shape, labels.shape) == ((2, 5, 4), (2, 5), (2, 5))


def test_class_agnostic():
    boxes = torch.tensor([[[0., 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]]])
    scores, labels = torch.tensor([[.9, .8, .2]]), torch.tensor([[0, 1, 1]])
    torch.testing.assert_close(suppress_by_class(boxes, scores, labels, 2, 0.5), scores, **EXACT)
    expected = torch.tensor([[.9, 0, .2]])
    torch.testing.assert_close(suppress_by_class(boxes, scores, labels, 1, 0.5), expected, **EXACT)


def test_rows_of_each_image():
    rows = torch.arange(24).reshape(2, 3, 4)
    torch.testing.assert_close(rows_at(rows, torch.tensor([[2, 0], [1, 1]])), torch.stack(
        [rows[0, [2, 0]], rows[1, [1, 1]]]), **EXACT)
