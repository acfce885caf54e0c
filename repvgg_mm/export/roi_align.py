"""RoIAlign within an exported graph: features of boxes, each from the level of the pyramid that fits its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ..engine.engine import optional

NAME = 'repvgg_mm::roi_align'
SCHEMA = (
    '(Tensor features, Tensor rois, Tensor chosen, int height, int width, float scale, int samples, bool aligned) '
    '-> Tensor')


def pool_rois(extractor: nn.Module, features: Sequence[Tensor], rois: Tensor) -> Tensor:
    """What mmdet's SingleRoIExtractor gives, (R, C, h, w), with a size that does not depend on the boxes.

    Args:
        features: (N, C, H, W) of each level that the extractor takes.
        rois: (R, 5), the number of the image, then x1 y1 x2 y2 in pixels of the input.
    """
    levels = extractor.map_roi_levels(rois, len(features))
    has_area = (rois[:, 3:] > rois[:, 1:3]).all(1)
    pooled = []
    for number, (feature, layer) in enumerate(zip(features, extractor.roi_layers)):
        chosen = levels == number
        if layer.aligned and layer.sampling_ratio <= 0:  # no samples in an empty box: 0, where OpenVINO divides by 0
            chosen = chosen & has_area
        height, width = layer.output_size
        pooled.append(roi_align(
            feature, rois, chosen, height, width, layer.spatial_scale, layer.sampling_ratio, layer.aligned))
    return sum(pooled)


def roi_align(
    features: Tensor, rois: Tensor, chosen: Tensor, height: int, width: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """Averages (R, C, height, width) of each `chosen` box's bins, as mmcv's RoIAlign; 0 of boxes that are not.

    Args:
        features: (N, C, H, W).
        rois: (R, 5), the number of the image, then x1 y1 x2 y2, in pixels of the input.
        chosen: (R,), whether to pool from these features.
        scale: of the features, by which boxes are multiplied.
        samples: on a side of a bin; 0 for one a feature that it covers, none in an empty box.
        aligned: whether pixels have their values in their middles; if not, a box has a side of 1 or more.
    """
    return _operator()(features, rois, chosen, height, width, scale, samples, aligned)


def translations() -> dict[object, Callable]:
    """What `torch.onnx.export` takes as `custom_translation_table`: ONNX's RoiAlign of the chosen boxes alone."""
    op = optional('onnxscript').opset18

    def in_onnx(
        features, rois, chosen, height: int, width: int, scale: float, samples: int, aligned: bool
    ):
        places = op.Transpose(op.NonZero(chosen), perm=[1, 0])          # M, 1
        of_level = op.GatherND(rois, places)                            # M, 5
        image = op.Constant(value_int=0)
        corners = op.Constant(value_ints=[1, 2, 3, 4])
        images = op.Cast(op.Gather(of_level, image, axis=1), to=7)      # int64
        boxes = op.Gather(of_level, corners, axis=1)

        mode = 'half_pixel' if aligned else 'output_half_pixel'
        pooled = op.RoiAlign(
            features, boxes, images, coordinate_transformation_mode=mode, mode='avg', output_height=height,
            output_width=width, sampling_ratio=samples, spatial_scale=scale)

        count = op.Shape(rois, start=0, end=1)
        channels = op.Shape(features, start=1, end=2)
        sides = op.Constant(value_ints=[height, width])
        zero = op.CastLike(op.Constant(value_float=0.), features)
        zeros = op.Expand(zero, op.Concat(count, channels, sides, axis=0))
        return op.ScatterND(zeros, places, pooled)

    _operator()
    return {torch.ops.repvgg_mm.roi_align.default: in_onnx}


@cache
def _operator() -> Callable:
    """Registered when it is used, as that of `suppression`."""
    operator = torch.library.custom_op(NAME, _roi_align, mutates_args=(), schema=SCHEMA)

    @operator.register_fake
    def _(features, rois, chosen, height, width, scale, samples, aligned):
        return features.new_empty(rois.shape[0], features.shape[1], height, width)
    return operator


def _roi_align(
    features: Tensor, rois: Tensor, chosen: Tensor, height: int, width: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    from mmcv.ops import roi_align as of_mmcv
    pooled = features.new_zeros(len(rois), features.shape[1], height, width)
    if chosen.any():
        features = features.contiguous()  # mmcv reads memory without looking at strides
        pooled[chosen] = of_mmcv(features, rois[chosen], (height, width), scale, samples, 'avg', aligned)
    return pooled
