"""What an engine computes: a model between images and logits, label maps, or decoded boxes, as one plain network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..openmmlab.model import decode_head_of, is_detector, is_segmentor
from ..openmmlab.preprocessing import Preprocessing

MAX_UINT8_CLASSES = 256
PREDICTION = ('predict_by_feat', '_predict_by_feat_single')  # what a head of mmdet's common rule inherits


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


class DetectorNetwork(nn.Module):
    """image -> dense `boxes` (N, P, 4), x1 y1 x2 y2 in pixels of the input, not clipped, and `scores` (N, P, classes).

    ATSS, FCOS and their like also give `score_factors` (N, P), centerness, by which mmdet multiplies the
    scores after it has chosen the best of each level. P counts the priors of all levels, one level after
    the other, row by row. Non-maximum suppression is not in it: `detections.detect` does that.

    Raises:
        UserError: the detector is not of one stage, or its head predicts in a way of its own.
    """

    outputs = ('boxes', 'scores', 'score_factors')  # the last one of heads that have it

    def __init__(self, model: nn.Module, preprocess: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.distribution = _check_head(model)

        generator = model.bbox_head.prior_generator
        self.levels = []
        for (columns, rows), priors in zip(generator.strides, generator.num_base_priors):
            self.levels.append([rows, columns, priors])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image if self.preprocess is None else self.preprocess(image)
        head = self.model.bbox_head
        features = self.model.extract_feat(x)
        classes, regressions, *factors = head(features)  # of each level

        sizes = [level.shape[-2:] for level in classes]
        priors = head.prior_generator.grid_priors(sizes, dtype=x.dtype, device=x.device)
        strides = head.prior_generator.strides

        boxes = [self.decode(*level) for level in zip(regressions, priors, strides)]
        scores = [self.scores(level) for level in classes]
        outputs = [torch.cat(boxes, 1), torch.cat(scores, 1)]
        for levels in factors:
            rows = [_rows(level, 1)[..., 0].sigmoid() for level in levels]
            outputs.append(torch.cat(rows, 1))
        return tuple(outputs)

    def scores(self, logits: Tensor) -> Tensor:
        """Of one level (N, P, classes)."""
        head = self.model.bbox_head
        rows = _rows(logits, head.cls_out_channels)
        return rows.sigmoid() if head.use_sigmoid_cls else rows.softmax(-1)[..., :-1]

    def decode(self, regression: Tensor, priors: Tensor, stride: tuple[int, int]) -> Tensor:
        """Boxes (N, P, 4) of one level."""
        head = self.model.bbox_head
        if self.distribution:
            rows = _rows(regression, 4 * (head.reg_max + 1))
            distances = head.integral(rows.flatten(0, 1))
            deltas = distances.unflatten(0, rows.shape[:2]) * stride[0]
            priors = head.anchor_center(priors)
        else:
            deltas = _rows(regression, head.bbox_coder.encode_size)

        priors = priors.expand(deltas.shape[0], -1, -1)
        boxes = head.bbox_coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1))
        return boxes.unflatten(0, deltas.shape[:2])


def network_of(model: nn.Module, preprocess: nn.Module | None = None, argmax: bool = False) -> nn.Module:
    """The network to export for a segmentor or a one-stage detector.

    Raises:
        UserError: it is neither, or --argmax is asked of a detector.
    """
    if is_segmentor(model):
        return SegmentorNetwork(model, preprocess, argmax).eval()
    if not is_detector(model):
        raise UserError(
            f'Segmentors and one-stage detectors are exported, and this model is a {type(model).__name__}. '
            'Give the config of one of those.')
    if argmax:
        raise UserError(
            f'--argmax ends a segmentor at its label map, and {type(model).__name__} is a detector. '
            'Export it without.')
    return DetectorNetwork(model, preprocess).eval()


def _check_head(model: nn.Module) -> bool:
    """Whether the head predicts a distribution of each edge, as GFL does; UserError if it is none we can decode."""
    from mmdet.models.dense_heads import GFLHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector

    head = getattr(model, 'bbox_head', None)
    owner = GFLHead if isinstance(head, GFLHead) else BaseDenseHead
    if isinstance(model, SingleStageDetector) and isinstance(head, BaseDenseHead):
        inherited = [getattr(type(head), name) is getattr(owner, name) for name in PREDICTION]
        custom = getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False)
        if all(inherited) and not custom and _clips_at_the_border(head):
            return owner is GFLHead

    found = 'no bbox_head' if head is None else type(head).__name__
    coder = getattr(head, 'bbox_coder', None)
    if coder is not None:
        found += f' and {type(coder).__name__}'
    raise UserError(
        f"Detectors are exported whose head predicts by mmdet's common rule, and {type(model).__name__} with "
        f'{found} is none of them. Supported are one-stage '
        'detectors with RetinaHead, ATSSHead, FCOSHead, GFLHead, RTMDetHead and heads that inherit their '
        'prediction.')


def _clips_at_the_border(head: nn.Module) -> bool:
    """Whether its coder clips boxes to 0 and the image, as `detect` does; that of mmdet 1 clips a pixel before."""
    generator = head.prior_generator
    priors, *_ = generator.grid_priors([(2, 2)] * generator.num_levels, device='cpu')
    if hasattr(head, 'anchor_center'):
        priors = head.anchor_center(priors)
    deltas = torch.linspace(-3, 3, 4 * len(priors)).reshape(-1, 4)
    height, width = 9, 7
    clipped, boxes = (head.bbox_coder.decode(priors, deltas, max_shape=shape) for shape in ((height, width), None))
    expected = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=boxes.dtype))
    return torch.equal(clipped, expected)


def _rows(level: Tensor, channels: int) -> Tensor:                       # N, A * channels, H, W
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)


def _by_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)

