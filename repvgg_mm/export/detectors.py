"""What a one-stage detector's engine computes: decoded boxes and scores of all priors, or with `--nms` detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.detections import check_settings
from ..errors import UserError
from .suppression import THRESHOLD, keep_best, rows_at, suppress_by_class

PREDICTION = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')  # what a head inherits
UNCLIPPED = ('tood', 'yolox')  # rules by which boxes may reach beyond the image


class DetectorNetwork(nn.Module):
    """image -> dense `boxes` (N, P, 4), x1 y1 x2 y2 in pixels of the input, not clipped, and `scores` (N, P, classes).

    ATSS, FCOS and their like also give `score_factors` (N, P), centerness, by which mmdet multiplies the
    scores after it has chosen the best of each level. P counts the priors of all levels, one level after
    the other, row by row. Non-maximum suppression is not in it: `detections.detect` does that. YOLOX's scores are those
    of the best class of a prior times its objectness, and 0 of the others.

    Raises:
        UserError: the detector is not of one stage, or its head predicts in a way of its own.
    """

    nms = 'outside'  # where suppression happens
    outputs = ('boxes', 'scores', 'score_factors')  # the last one of heads that have it

    def __init__(self, model: nn.Module, preprocess: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.rule = _rule_of(model)
        self.clips = self.rule not in UNCLIPPED

        generator = model.bbox_head.prior_generator
        self.levels = []
        for (columns, rows), priors in zip(generator.strides, generator.num_base_priors):
            self.levels.append([rows, columns, priors])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image if self.preprocess is None else self.preprocess(image)
        return _joined(self.predict_levels(x))

    def predict_levels(self, x: Tensor) -> list[tuple[Tensor, ...]]:      # N, 3, H, W
        """The outputs of each level."""
        head = self.model.bbox_head
        features = self.model.extract_feat(x)
        classes, regressions, *factors = head(features)  # of each level

        sizes = [level.shape[-2:] for level in classes]
        priors = head.prior_generator.grid_priors(sizes, dtype=x.dtype, device=x.device)
        strides = head.prior_generator.strides

        boxes = [self.decode(*level) for level in zip(regressions, priors, strides)]
        scores = [self.scores(level) for level in classes]
        outputs = [boxes, scores]
        for levels in factors:
            outputs.append([_rows(level, 1)[..., 0].sigmoid() for level in levels])
        if self.rule == 'yolox':
            boxes, scores, objectness = outputs
            outputs = [boxes, [*map(_of_best_class, scores, objectness)]]
        return list(zip(*outputs))

    def scores(self, logits: Tensor) -> Tensor:
        """Of one level (N, P, classes)."""
        head = self.model.bbox_head
        rows = _rows(logits, head.cls_out_channels)
        if self.rule == 'tood':
            return rows
        return rows.sigmoid() if head.use_sigmoid_cls else rows.softmax(-1)[..., :-1]

    def decode(self, regression: Tensor, priors: Tensor, stride: tuple[int, int]) -> Tensor:
        """Boxes (N, P, 4) of one level."""
        head = self.model.bbox_head
        if self.rule == 'tood':
            return _rows(regression, 4) * stride[0]
        if self.rule == 'yolox':
            return _around(priors, _rows(regression, 4), stride)
        if self.rule == 'gfl':
            rows = _rows(regression, 4 * (head.reg_max + 1))
            distances = head.integral(rows.flatten(0, 1))
            deltas = distances.unflatten(0, rows.shape[:2]) * stride[0]
            priors = head.anchor_center(priors)
        else:
            deltas = _rows(regression, head.bbox_coder.encode_size)

        priors = priors.expand(deltas.shape[0], -1, -1)
        boxes = head.bbox_coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1))
        return boxes.unflatten(0, deltas.shape[:2])


class DetectorWithNms(DetectorNetwork):
    """image -> detections, best first: `boxes` (N, K, 4), `scores` (N, K) and `labels` (N, K), int64.

    As mmdet's one-stage detectors choose them by their `test_cfg`: on each level the `nms_pre` best pairs of prior
    and class above `score_thr`, then suppression, then the K = `max_per_img` best. Rows without a detection have
    boxes and a score of 0 and the label -1. Boxes are in pixels of the input, clipped to the input without
    the padding that is added inside; padding that is added outside belongs to the input.

    Raises:
        UserError: as `DetectorNetwork`, or the `test_cfg` asks for what has no fixed size or needs the original image.
    """

    nms = 'inside'
    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module, preprocess: nn.Module | None = None) -> None:
        super().__init__(model, preprocess)
        settings = model.bbox_head.test_cfg
        _check_limits(settings, ('max_per_img',) if self.rule == 'yolox' else ('nms_pre', 'max_per_img'))
        self.register_buffer(THRESHOLD, torch.tensor(float(settings.get('score_thr', 0))))
        self.nms_pre = settings.get('nms_pre')
        self.max_per_img = settings['max_per_img']
        self.filters_empty = settings.get('min_bbox_size', -1) == 0
        self.iou_threshold = settings['nms']['iou_threshold']
        self.class_agnostic = settings['nms'].get('class_agnostic', False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image if self.preprocess is None else self.preprocess(image)
        height, width = x.shape[2:] if self.preprocess is None else image.shape[1:3]
        candidates = [self.best(*level) for level in self.predict_levels(x)]
        boxes, scores, labels = _joined(candidates)

        if self.clips:
            boxes = clip(boxes, height, width)
        if self.filters_empty:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores * (sides > 0).all(-1)

        num_classes = 1 if self.class_agnostic else self.model.bbox_head.num_classes
        kept = suppress_by_class(boxes, scores, labels, num_classes, self.iou_threshold)
        return keep_best(boxes, kept, labels, self.max_per_img)

    def best(
        self, boxes: Tensor, scores: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of one level's priors the best pairs with a class: boxes (N, M, 4), scores and labels (N, M).

        The scores of pairs that are not above the threshold are 0. `factors` are multiplied after choosing.
        """
        if self.rule == 'yolox':  # all priors
            values, labels = scores.max(2)
            return boxes, values * (values > self.score_thr), labels

        classes = scores.shape[2]
        pairs = scores.flatten(1)
        values, chosen = pairs.topk(torch.sym_min(self.nms_pre, pairs.shape[1]))
        values = values * (values > self.score_thr)

        priors = chosen.div(classes, rounding_mode='trunc')
        labels = chosen - priors * classes
        if factors is not None:
            values = values * factors.gather(1, priors)
        return rows_at(boxes, priors), values, labels


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, P, 4) cut off at the borders of an image."""
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], -1).flatten(2)


def replace_deformable_sampling(model: nn.Module) -> nn.Module:
    """Let a TOODHead sample by torch's own `grid_sample`, which exporters know; returns `model`, changed."""
    from mmdet.models.dense_heads import TOODHead
    head = getattr(model, 'bbox_head', None)
    if isinstance(head, TOODHead):
        head.deform_sampling = sample_at
    return model


def sample_at(features: Tensor, offsets: Tensor) -> Tensor:
    """Values (N, C, H, W) of each channel at its own offsets (N, 2C, H, W), y and x in pixels; bilinear, 0 outside.

    Equals mmcv's `deform_conv2d` by a kernel of one 1 for each channel, as mmdet's TOODHead calls it.
    """
    images, channels, height, width = features.shape
    rows = torch.arange(height, dtype=features.dtype, device=features.device)[:, None]
    columns = torch.arange(width, dtype=features.dtype, device=features.device)
    offsets = offsets.reshape(images * channels, 2, height, width)
    y = (2 * (offsets[:, 0] + rows) + 1) / height - 1
    x = (2 * (offsets[:, 1] + columns) + 1) / width - 1

    maps = features.reshape(images * channels, 1, height, width)
    sampled = F.grid_sample(maps, torch.stack([x, y], -1), align_corners=False)
    return sampled.reshape(features.shape)


def _of_best_class(scores: Tensor, objectness: Tensor) -> Tensor:        # N, P, classes and N, P
    best, label = scores.max(2, keepdim=True)
    classes = torch.arange(scores.shape[2], device=scores.device)
    return torch.where(classes == label, best * objectness[..., None], 0.)


def _around(points: Tensor, rows: Tensor, stride: tuple[int, int]) -> Tensor:
    """Boxes (N, P, 4) of YOLOX: centres from points (P, 2) and logarithms of sides, in strides."""
    strides = rows.new_tensor(stride)
    centres = rows[..., :2] * strides + points
    sides = rows[..., 2:].exp() * strides
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def _rule_of(model: nn.Module) -> str:
    """By which a head's outputs become boxes: 'coder', 'gfl', 'tood' or 'yolox'; UserError if by none of them."""
    from mmdet.models.dense_heads import GFLHead, TOODHead, YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector

    head = getattr(model, 'bbox_head', None)
    rule, owner = 'coder', BaseDenseHead
    for name, cls in dict(gfl=GFLHead, tood=TOODHead, yolox=YOLOXHead).items():
        if isinstance(head, cls):
            rule, owner = name, cls
    if isinstance(model, SingleStageDetector) and isinstance(head, BaseDenseHead):
        inherited = [getattr(type(head), name) is getattr(owner, name) for name in PREDICTION]
        custom = getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False)
        if all(inherited) and not custom and (rule in UNCLIPPED or _clips_at_the_border(head)):
            return rule

    found = 'no bbox_head' if head is None else type(head).__name__
    coder = getattr(head, 'bbox_coder', None)
    if coder is not None:
        found += f' and {type(coder).__name__}'
    raise UserError(
        f"Detectors are exported whose head predicts by mmdet's common rule, and {type(model).__name__} with "
        f'{found} is none of them. Supported are one-stage '
        'detectors with RetinaHead, ATSSHead, FCOSHead, GFLHead, RTMDetHead, TOODHead, YOLOXHead and heads that '
        'inherit their prediction.')


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


def _check_limits(settings: Mapping, keys: Sequence[str]) -> None:
    """UserError if a graph of fixed sizes cannot choose boxes by this `test_cfg`."""
    check_settings(settings)
    for key in keys:
        value = settings.get(key, -1)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f'With --nms the number of boxes is fixed in the graph, and this test_cfg has {key}={value}. '
                f'Set model.test_cfg.{key} to a number of boxes, or export without --nms.')

    least = settings.get('min_bbox_size', -1)
    if least > 0:
        raise UserError(
            f'Boxes are compared with min_bbox_size in pixels of the original image, which an engine does not see, and '
            f'this test_cfg has min_bbox_size={least}. Set model.test_cfg.min_bbox_size to 0, or export without --nms.')
    if settings.get('score_thr', 0) < 0:
        raise UserError(
            f'With --nms a score of 0 means that there is no box, and this test_cfg has '
            f'score_thr={settings["score_thr"]}. Set model.test_cfg.score_thr to 0 or more, or export without --nms.')


def _joined(levels: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts, 1) for parts in zip(*levels))


def _rows(level: Tensor, channels: int) -> Tensor:                       # N, A * channels, H, W
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)
