"""What a model computes from images before any post-processing, two-stage detectors of mmdet included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEFAULT_PROPOSALS = 1000


def raw_outputs(model: nn.Module, *inputs: Tensor) -> object:
    """`model(*inputs)`; of a two-stage detector the raw outputs of both stages, by the name of their heads.

    By itself such a detector gives its second stage the regions that it ranks and thins out from the
    outputs of the first: rounding then changes which regions these are, and with them every later output.
    Here they are `fixed_proposals`, as many as the detector would take, and no stage is left out.
    """
    if not is_two_stage(model):
        return model(*inputs)
    from mmengine.structures import BaseDataElement, InstanceData  # mmdet is there, so MMEngine is too

    images, = inputs
    height, width = images.shape[2:]
    settings = (model.test_cfg or {}).get('rpn') or {}
    count = settings.get('max_per_img', DEFAULT_PROPOSALS)
    boxes = fixed_proposals(count, height, width).to(images)

    proposals = [InstanceData(bboxes=boxes) for _ in images]
    samples = [BaseDataElement(metainfo=dict(img_shape=(height, width))) for _ in images]

    outputs = {}
    features = model.extract_feat(images)
    if model.with_rpn:
        outputs['rpn_head'] = model.rpn_head(features)
    outputs['roi_head'] = model.roi_head(features, proposals, samples)
    return outputs


def is_two_stage(model: nn.Module) -> bool:
    """Whether `model` is a TwoStageDetector of mmdet, which is not imported for this."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith('mmdet.') and cls.__name__ == 'TwoStageDetector':
            return True
    return False


def fixed_proposals(count: int, height: int, width: int) -> Tensor:
    """Boxes x1, y1, x2, y2 in pixels inside the image, (count, 4): every position, sizes from 1/32 of a side to all."""
    generator = torch.Generator().manual_seed(0)
    sides = 32 ** (torch.rand(count, 2, generator=generator) - 1)         # of the image's, 1/32 to 1
    corners = torch.rand(count, 2, generator=generator) * (1 - sides)

    boxes = torch.cat([corners, corners + sides], 1)
    return boxes * torch.tensor([width, height, width, height])
