"""What a model computes from images before any post-processing, as far as it runs without data.

A plain model is called. Many detectors cannot be: they want to know the sizes of the images, or have no forward
without a prediction. So there are several ways, tried in this order, and a model is run in the first that it can take.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .reproducible import evaluating

DEFAULT_PROPOSALS = 1000
FREE_OF_DATA = 'raw outputs'
BACKBONE = 'the feature maps of the backbone'
PREDICTIONS = 'predictions and the outputs of heads, with the choices of the training form'
CANNOT = (AssertionError, AttributeError, ImportError, IndexError, KeyError, NotImplementedError, TypeError)
NO_KERNEL = 'implementation for device'  # in mmcv's message where an operation has none for a CPU


def raw_outputs(model: nn.Module, *inputs: Tensor) -> object:
    """`model(*inputs)`; of a two-stage detector the raw outputs of both stages, by the name of their heads.

    By itself such a detector gives its second stage the regions that it ranks and thins out from the
    outputs of the first: rounding then changes which regions these are, and with them every later output.
    Here they are `fixed_proposals`, as many as the detector would take, and no stage is left out.
    """
    if not is_two_stage(model):
        return model(*inputs)

    images, = inputs
    height, width = images.shape[2:]
    settings = (model.test_cfg or {}).get('rpn') or {}
    count = settings.get('max_per_img', DEFAULT_PROPOSALS)
    boxes = fixed_proposals(count, height, width).to(images)

    from mmengine.structures import InstanceData  # mmdet is there, so MMEngine is too
    proposals = [InstanceData(bboxes=boxes) for _ in images]

    outputs = {}
    features = model.extract_feat(images)
    if model.with_rpn:
        outputs['rpn_head'] = model.rpn_head(features)
    outputs['roi_head'] = model.roi_head(features, proposals, made_up_samples(images))
    return outputs


def outputs_with_samples(model: nn.Module, images: Tensor) -> object:
    """The raw outputs of a model that wants to know the sizes of its images."""
    return model(images, made_up_samples(images), mode='tensor')


def predictions(model: nn.Module, images: Tensor) -> object:
    """The values of a prediction, by the image's number and by name; the calls of heads inside are seen by hooks."""
    predicted = model(images, made_up_samples(images), mode='predict')
    return [_values(sample) for sample in predicted]


def backbone_features(model: nn.Module, images: Tensor) -> object:
    """What the backbone gives, where the neck has an operation that this device has not."""
    return model.backbone(images)


def features(model: nn.Module, images: Tensor) -> object:
    """The inputs of the heads: what the neck gives, or the backbone where there is no neck."""
    return model.extract_feat(images)


WAYS: dict[str, Callable] = {
    FREE_OF_DATA: raw_outputs,
    'raw outputs, with made-up data samples': outputs_with_samples,
    PREDICTIONS: predictions,
    'the inputs of the heads': features,
    BACKBONE: backbone_features,
}


@torch.no_grad()
def way_of(model: nn.Module, *inputs: Tensor) -> str:
    """The first of WAYS in which `model` can be run on `inputs`, in eval mode.

    Raises:
        RuntimeError: or whatever the model raises that no other way would help: the input is too small, say.
    """
    if not hasattr(model, 'extract_feat') or len(inputs) != 1:
        return FREE_OF_DATA

    for way, run in WAYS.items():
        try:
            with evaluating(model):
                run(model, *inputs)
        except Exception as error:
            if not _another_way_helps(error, way):
                raise
        else:
            return way


def _another_way_helps(error: Exception, way: str) -> bool:
    """Whether a model may run in one of the next WAYS after `error` in this one.

    A RuntimeError in the first way is about the input, and every other way would have it too. A model that is not
    trained may predict boxes from which its own next stage cannot go on.
    """
    *_, last_but_one, last = WAYS
    if isinstance(error, ImportError) or NO_KERNEL in str(error):
        return way != last
    if way in (last_but_one, last):
        return False
    return way != FREE_OF_DATA or isinstance(error, CANNOT)


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


def made_up_samples(images: Tensor) -> list:
    """What the toolboxes' data says of images that were neither resized nor padded, N times."""
    from mmengine.structures import BaseDataElement

    shape = tuple(images.shape[2:])
    sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1., 1.))
    return [BaseDataElement(metainfo=dict(sizes, img_id=number)) for number in range(len(images))]


def _values(sample: object) -> object:
    """The content of a data element as dicts of values, other values as they are."""
    if not hasattr(sample, 'all_items'):
        return sample
    return {name: _values(value) for name, value in sample.items()}
