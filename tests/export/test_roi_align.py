"""RoIAlign in PyTorch, ONNX Runtime and OpenVINO against mmdet's extractor: empty boxes and empty levels included."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from repvgg_mm.engine.openvino_file import openvino_core
from repvgg_mm.export.onnx_graph import to_onnx
from repvgg_mm.export.roi_align import pool_rois

EXACT = dict(rtol=0, atol=0)

def extractor(**changes) -> nn.Module:
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    layer = ConfigDict(dict(dict(type='RoIAlign', output_size=(3, 2), sampling_ratio=0), **changes))
    return SingleRoIExtractor(layer, out_channels=4, featmap_strides=[4, 8], finest_scale=12)


class Pools(nn.Module):
    """Features (2, 4, 8, 9), of which every second is the second level, and boxes (20, 5), all in one vector."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return pool_rois(self.module, *self.parts(x))

    def parts(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        features, rois = x.split([2 * 4 * 8 * 9, 20 * 5])
        features = features.reshape(2, 4, 8, 9)
        return [features, features[:, :, ::2, ::2].contiguous()], rois.reshape(20, 5)


def boxes(largest: int) -> Tensor:
    """(20, 5), of two images, some beyond their borders; the last two are empty, as those that pad the proposals."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, generator=generator) * 30 - 4
    sides = torch.rand(20, 2, generator=generator) * largest
    images = torch.arange(20).remainder(2)[:, None]
    rois = torch.cat([images, corners, corners + sides], 1)
    rois[18] = torch.tensor([1, 9., 9, 9, 9])
    rois[19, 1:] = 0
    return rois


@pytest.mark.parametrize('changes', [{}, dict(sampling_ratio=2), dict(aligned=False)])
@pytest.mark.parametrize('largest', [60, 20])  # boxes on both levels, or on the first alone
def test_equals_mmdets_extractor_in_each_engine(changes, largest, tmp_path):
    module, rois = extractor(**changes), boxes(largest)
    levels = module.map_roi_levels(rois, 2)
    assert levels.unique().tolist() == ([0, 1] if largest == 60 else [0])
    features = torch.randn(2 * 4 * 8 * 9, generator=torch.Generator().manual_seed(1))
    x = torch.cat([features, rois.flatten()])
    network = Pools(module)

    expected = module(*network.parts(x))
    assert expected[:18].flatten(1).any(1).all()
    torch.testing.assert_close(network(x), expected, **EXACT)

    onnx.save(to_onnx(network, x, ['pooled']), tmp_path / 'pool.onnx')
    by_onnxruntime, = onnxruntime.InferenceSession(tmp_path / 'pool.onnx').run(None, dict(image=x.numpy()))
    compiled = openvino_core().compile_model(tmp_path / 'pool.onnx', 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    torch.testing.assert_close(torch.from_numpy(by_onnxruntime), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), expected, rtol=1e-5, atol=1e-5)
