"""What an engine computes, as one plain network: a segmentor between images and logits or label maps; which network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..openmmlab.model import decode_head_of, is_detector, is_segmentor
from ..openmmlab.preprocessing import Preprocessing
from .detectors import DetectorNetwork, DetectorWithNms
from .two_stage import TwoStageNetwork

MAX_UINT8_CLASSES = 256


class Preprocess(nn.Module):
    """uint8 BGR images (N, H, W, 3) -> what the network takes (N, 3, H', W'), in the toolbox's own arithmetic.

    H' and W' are the next multiples of the padding; it is added below and on the right.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.settings = preprocessing
        if preprocessing.mean is not None:
            self.register_buffer('mean', _by_channel(preprocessing.mean))
            self.register_buffer('std', _by_channel(preprocessing.std))

    def forward(self, image: Tensor) -> Tensor:                          # N, H, W, 3
        x = image.flip(3) if self.settings.swap_channels else image
        x = x.permute(0, 3, 1, 2).float()                                # N, 3, H, W
        if self.settings.mean is not None:
            x = (x - self.mean) / self.std

        divisor = self.settings.pad_divisor
        if divisor > 1:
            height, width = x.shape[2:]
            below, right = -height % divisor, -width % divisor
            x = F.pad(x, (0, right, 0, below), value=self.settings.pad_value)
        return x


class SegmentorNetwork(nn.Module):
    """image -> `logits` (N, classes, H, W) of mmseg's whole inference, or `labels` (N, H, W).

    Labels are uint8 up to 256 classes, else int32; of one output channel, 1 where its sigmoid is above the
    head's threshold.
    """

    def __init__(self, model: nn.Module, preprocess: nn.Module | None = None, argmax: bool = False) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.argmax = argmax
        self.outputs = ('labels',) if argmax else ('logits',)

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.preprocess is None else self.preprocess(image)
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])  # resized there to the size of x
        if self.preprocess is not None:
            logits = logits[:, :, :image.shape[1], :image.shape[2]]
        return self.labels(logits) if self.argmax else logits

    def labels(self, logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        if classes > 1:
            labels = logits.argmax(1)
        else:
            labels = logits[:, 0].sigmoid() > decode_head_of(self.model).threshold
        return labels.to(torch.uint8 if classes <= MAX_UINT8_CLASSES else torch.int32)


def network_of(
    model: nn.Module, preprocess: nn.Module | None = None, argmax: bool = False, nms: bool = False
) -> nn.Module:
    """The network to export for a segmentor or a detector; one of two stages suppresses boxes inside in any case.

    Raises:
        UserError: it is neither, or --argmax is asked of a detector, --nms of a segmentor.
    """
    if is_segmentor(model):
        if nms:
            raise UserError(
                f'--nms ends a detector at its detections, and {type(model).__name__} is a segmentor. '
                'Export it without; --argmax ends it at its label map.')
        return SegmentorNetwork(model, preprocess, argmax).eval()

    if not is_detector(model):
        raise UserError(
            f'Segmentors and detectors are exported, and this model is a {type(model).__name__}. '
            'Give the config of one of those.')
    if argmax:
        raise UserError(
            f'--argmax ends a segmentor at its label map, and {type(model).__name__} is a detector. '
            'Export it without.')
    if hasattr(model, 'roi_head'):
        return TwoStageNetwork(model, preprocess).eval()
    network = DetectorWithNms if nms else DetectorNetwork
    return network(model, preprocess).eval()


def _by_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)

