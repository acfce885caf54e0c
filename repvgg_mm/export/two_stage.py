"""What a two-stage detector's engine computes: proposals, a box of each class for each, detections, and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..engine.detections import check_settings
from ..errors import UserError
from .detectors import clip
from .roi_align import pool_rois
from .suppression import THRESHOLD, keep_best, rows_at, suppress, suppress_by_class

OF_PROPOSALS = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')  # methods of an RPN
OF_STAGES = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward', '_refine_roi')
OF_BOXES = ('predict_by_feat', '_predict_by_feat_single', 'regress_by_class')
OF_MASKS = ('predict_by_feat', '_predict_by_feat_single')
SUPPORTED = 'Faster R-CNN, Mask R-CNN and Cascade R-CNN with SingleRoIExtractor, RoIAlign and DeltaXYWHBBoxCoder'


class TwoStageNetwork(nn.Module):
    """image -> detections, best first: `boxes` (N, K, 4), `scores` (N, K), `labels` (N, K), int64, perhaps `masks`.

    As mmdet's Faster R-CNN, Mask R-CNN and Cascade R-CNN choose them by their `test_cfg`: K is `rcnn.max_per_img`, of
    `rpn.max_per_img` proposals an image. Rows without a detection have boxes and a score of 0 and the label -1.
    Boxes are in pixels of the input, clipped to the input without the padding that is added inside; padding that is
    added outside belongs to the input.

    `masks` (N, K, h, w) are the probabilities of the box's class on a grid of h x w cells that covers the box.

    Raises:
        UserError: a stage predicts in a way of its own, or the `test_cfg` asks for what has no fixed size.
    """

    nms = 'inside'
    clips = True

    def __init__(self, model: nn.Module, preprocess: nn.Module | None = None) -> None:
        super().__init__()
        _check_stages(model)
        _check_limits(model.test_cfg)
        self.register_buffer(THRESHOLD, torch.tensor(float(model.test_cfg['rcnn'].get('score_thr', 0))))
        self.model = model
        self.preprocess = preprocess
        self.outputs = ('boxes', 'scores', 'labels')
        if model.roi_head.with_mask:
            self.outputs += ('masks',)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image if self.preprocess is None else self.preprocess(image)
        size = x.shape[2:] if self.preprocess is None else image.shape[1:3]
        features = self.model.extract_feat(x)

        proposals, objectness = self.propose(features, size)
        boxes, scores = self.classify(features, proposals, size)
        scores = torch.where(objectness[:, None] > 0, scores, 0.)
        boxes, scores, labels = self.choose(boxes, scores)
        if 'masks' not in self.outputs:
            return boxes, scores, labels
        return boxes, scores, labels, self.masks(features, boxes, labels)

    def propose(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The best boxes (N, P, 4) of the RPN for an image of (height, width), and their scores (N, P)."""
        head = self.model.rpn_head
        settings = head.test_cfg
        logits, regressions = head(features)
        priors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in logits], dtype=logits[0].dtype, device=logits[0].device)

        boxes, scores, levels = [], [], []
        for number, level in enumerate(zip(logits, regressions, priors)):
            some, values = _best_of_level(head, settings['nms_pre'], *level)
            boxes.append(some)
            scores.append(values)
            levels.append(torch.full_like(values, number, dtype=torch.long))

        boxes = clip(torch.cat(boxes, 1), *size)
        scores, levels = torch.cat(scores, 1), torch.cat(levels, 1)
        least = settings.get('min_bbox_size', -1)
        if least >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores * (sides > least).all(-1)

        suppressed_apart = 1 if settings['nms'].get('class_agnostic') else len(logits)
        kept = suppress_by_class(boxes, scores, levels, suppressed_apart, settings['nms']['iou_threshold'])
        boxes, scores, _ = keep_best(boxes, kept, levels, settings['max_per_img'])
        return boxes, scores

    def classify(self, features: Sequence[Tensor], boxes: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of proposals (N, P, 4) a box (N, C, P, 4) and a score (N, C, P) of each class.

        A cascade's boxes go through its stages, and its logits are the mean of theirs.
        """
        stages = _stages(self.model.roi_head.bbox_roi_extractor, self.model.roi_head.bbox_head)
        images, count = boxes.shape[:2]
        logits = []
        for number, (extractor, head) in enumerate(stages):
            pooled = pool_rois(extractor, features[:extractor.num_inputs], _rois(boxes))
            classes, deltas = head(pooled)
            logits.append(classes)
            if number + 1 < len(stages):
                best = classes[:, :-1].argmax(1)
                refined = head.regress_by_class(boxes.flatten(0, 1), best, deltas, dict(img_shape=None))
                boxes = clip(refined.unflatten(0, (images, count)), *size)

        kinds = 1 if head.reg_class_agnostic else head.num_classes
        priors = boxes.flatten(0, 1).repeat_interleave(kinds, 0)
        decoded = head.bbox_coder.decode(priors, deltas.reshape(-1, 4))
        decoded = clip(decoded.reshape(images, -1, 4), *size)
        decoded = decoded.reshape(images, count, kinds, 4).expand(-1, -1, head.num_classes, -1)

        mean = sum(logits) / len(logits)
        scores = mean.softmax(-1)[:, :-1].unflatten(0, (images, count))
        return decoded.transpose(1, 2), scores.transpose(1, 2)

    def choose(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of boxes (N, C, P, 4) and scores (N, C, P) of each class."""
        settings = self.model.roi_head.test_cfg
        scores = scores * (scores > self.score_thr)
        images, classes, count = scores.shape
        labels = torch.arange(classes, device=boxes.device)[:, None].expand(images, -1, count).flatten(1)

        threshold = settings['nms']['iou_threshold']
        all_boxes, all_scores = boxes.flatten(1, 2), scores.flatten(1)
        if settings['nms'].get('class_agnostic'):
            kept = suppress(all_boxes, all_scores[:, None], threshold)
        else:
            kept = suppress(boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], threshold)
        return keep_best(all_boxes, kept.reshape(images, -1), labels, settings['max_per_img'])

    def masks(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (N, K, h, w) of each box's class; a cascade's are the mean of its stages'."""
        stages = _stages(self.model.roi_head.mask_roi_extractor, self.model.roi_head.mask_head)
        rois, labels = _rois(boxes), labels.flatten().clamp(min=0)
        probabilities = []
        for extractor, head in stages:
            logits = head(pool_rois(extractor, features[:extractor.num_inputs], rois))
            if head.class_agnostic:
                of_label = logits[:, 0]
            else:
                chosen = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
                of_label = logits.gather(1, chosen)[:, 0]
            probabilities.append(of_label.sigmoid())
        return (sum(probabilities) / len(stages)).unflatten(0, boxes.shape[:2])


def _best_of_level(
    head: nn.Module, limit: int, logits: Tensor, regressions: Tensor, priors: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes (N, M, 4) and scores (N, M) of the best M <= `limit` priors of a level of an RPN."""
    images = logits.shape[0]
    logits = logits.permute(0, 2, 3, 1).reshape(images, -1, head.cls_out_channels)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)
    deltas = regressions.permute(0, 2, 3, 1).reshape(images, -1, 4)

    scores = scores[..., 0]
    scores, chosen = scores.topk(torch.sym_min(limit, scores.shape[1]))
    priors = rows_at(priors.expand(images, -1, -1), chosen)
    boxes = head.bbox_coder.decode(priors.flatten(0, 1), rows_at(deltas, chosen).flatten(0, 1))
    return boxes.reshape(images, -1, 4), scores


def _rois(boxes: Tensor) -> Tensor:                                      # N, P, 4 -> N * P, 5
    images = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    numbers = images[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat([numbers, boxes], -1).flatten(0, 1)


def _stages(extractor: nn.Module, head: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Each stage of a cascade, or the one that there is."""
    if isinstance(head, nn.ModuleList):
        return list(zip(extractor, head))
    return [(extractor, head)]


def _check_stages(model: nn.Module) -> None:
    """UserError if a stage of the detector does not predict by mmdet's own rule."""
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    roi_head = model.roi_head
    owner = CascadeRoIHead if isinstance(roi_head, CascadeRoIHead) else StandardRoIHead
    parts = [
        (model, TwoStageDetector, ('predict', 'extract_feat')),
        (getattr(model, 'rpn_head', None), RPNHead, OF_PROPOSALS),
        (roi_head, owner, OF_STAGES)]
    stages = _stages(roi_head.bbox_roi_extractor, roi_head.bbox_head) if roi_head.with_bbox else []
    parts += [(head, BBoxHead, OF_BOXES) for _, head in stages]
    coders = [head.bbox_coder for _, head in stages]
    if roi_head.with_mask:
        masks = _stages(roi_head.mask_roi_extractor, roi_head.mask_head)
        parts += [(head, FCNMaskHead, OF_MASKS) for _, head in masks]
        stages = [*stages, *masks]

    for part, cls, methods in parts:
        if not _inherits(part, cls, methods):
            raise _unknown(model, part)
    if roi_head.with_shared_head:
        raise _unknown(model, roi_head.shared_head)
    for coder in (model.rpn_head.bbox_coder, *coders):
        if not _clips_at_the_border(coder):
            raise _unknown(model, coder)
    for extractor, head in stages:
        if not _pools_by_size(extractor):
            raise _unknown(model, extractor)
        if getattr(head, 'custom_cls_channels', False) or getattr(head, 'custom_activation', False):
            raise _unknown(model, head.loss_cls)


def _inherits(part: object, owner: type, methods: Sequence[str]) -> bool:
    """Whether a model's part has these methods from the class `owner`, if that has them."""
    if not isinstance(part, owner):
        return False
    return all(getattr(type(part), name, None) is getattr(owner, name, None) for name in methods)


def _clips_at_the_border(coder: object) -> bool:
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
    return type(coder) is DeltaXYWHBBoxCoder and coder.clip_border


def _pools_by_size(extractor: nn.Module) -> bool:
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    if type(extractor) is not SingleRoIExtractor:
        return False
    return all(type(layer) is RoIAlign and layer.pool_mode == 'avg' for layer in extractor.roi_layers)


def _unknown(model: nn.Module, part: object) -> UserError:
    found = 'no region proposals' if part is None else type(part).__name__
    return UserError(
        f"Two-stage detectors are exported whose stages predict by mmdet's own rule, and {type(model).__name__} with "
        f'{found} is none of them. Supported are {SUPPORTED}; convert this model, and run the deploy form with '
        'PyTorch.')


def _check_limits(settings: Mapping) -> None:
    """UserError if a graph of fixed sizes cannot choose boxes by this `test_cfg`."""
    for stage, keys in (('rpn', ('nms_pre', 'max_per_img')), ('rcnn', ('max_per_img',))):
        check_settings(settings[stage])
        for key in keys:
            value = settings[stage].get(key, -1)
            if not isinstance(value, int) or value < 1:
                raise UserError(
                    f'The number of boxes of a two-stage detector is fixed in its graph, and this test_cfg has '
                    f'{stage}.{key}={value}. Set model.test_cfg.{stage}.{key} to a number of boxes.')

    least = settings['rcnn'].get('score_thr', 0)
    if least < 0:
        raise UserError(
            f'A score of 0 means that there is no box, and this test_cfg has rcnn.score_thr={least}. '
            'Set model.test_cfg.rcnn.score_thr to 0 or more.')
