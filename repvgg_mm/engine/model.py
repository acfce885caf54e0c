"""An engine in the place of a model: the toolbox's own inference and post-processing around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ..deploy.config import deploy_config
from ..errors import UserError
from ..openmmlab.model import build_model, is_detector, is_segmentor, mask_head_of, num_classes_of, settings_of
from ..openmmlab.preprocessing import Preprocessing
from .detections import check_settings, detect, in_float32
from .engine import Engine

UNTOUCHED = dict(  # settings of a data preprocessor that only stacks images
    mean=None, std=None, bgr_to_rgb=False, rgb_to_bgr=False, pad_size_divisor=1, test_cfg=None)
CERTAIN = 20.  # logit of a label: its sigmoid is 1 - 2e-9


class EngineModel(BaseModel):
    """The model of a config that computes by an engine: `test_step` gives the toolbox's data samples.

    What is around the network is the toolbox's: a segmentor's whole or slide inference, the resizing of its
    logits to the original image, mmdet's data samples. A label map is resized as logits of 0 and 1, which
    is not what resizing the logits gives: at an edge the metric of an `--argmax` engine may differ a little.
    Boxes are chosen by `detections.detect` with the config's `test_cfg`, which must be that of an engine with
    suppression inside.

    Args:
        cfg: of the model, in either form.
        engine: static or dynamic; of one whose preprocessing is inside, images are only stacked outside.
        model: the model of `cfg` where there is one already; its weights are not used.

    Raises:
        UserError: the engine was exported for another task, number of classes or preprocessing than the config's, or
            with suppression by other settings.
    """

    def __init__(self, cfg: Config, engine: Engine, model: nn.Module | None = None) -> None:
        if model is None:
            model = build_model(deploy_config(cfg))
        _check_fit(cfg, engine, model)

        inside = engine.description.preprocessing.inside
        super().__init__(_stacking(cfg) if inside else model.data_preprocessor)
        self.engine = engine
        self.model = model
        self.inside = inside
        if is_segmentor(model):
            model.encode_decode = self.logits
        elif engine.description.nms == 'inside':
            _check_test_cfg(engine, model)
        else:
            check_settings(model.bbox_head.test_cfg)

    def test_step(self, data: dict) -> list[BaseDataElement]:
        """Images one by one, whatever the batch: engines take one, and images of a batch may differ in size."""
        samples = []
        for i in range(len(data['inputs'])):
            one = {key: value[i:i + 1] for key, value in data.items()}
            samples += super().test_step(one)
        return samples

    val_step = test_step

    def forward(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'predict'
    ) -> list[BaseDataElement]:
        if mode != 'predict':
            raise UserError(f"An engine predicts, and mode='{mode}' was asked for. Use the checkpoint instead.")
        if is_segmentor(self.model):
            return self.model.predict(inputs, data_samples)

        found = self.detections(self.run(inputs), data_samples)
        return self.model.add_pred_to_datasample(data_samples, found)

    def run(self, inputs: Tensor) -> dict[str, np.ndarray]:                # N, 3, H, W
        """The engine's outputs, float16 as float32.

        Raises:
            UserError: it does not take images of this size or type.
        """
        if not self.inside:
            return in_float32(self.engine(inputs.cpu().numpy()))

        images = inputs.to(torch.uint8)
        if not torch.equal(images.to(inputs), inputs):
            raise UserError(
                f'{self.engine.path} normalises images of whole numbers from 0 to 255, and the '
                f"config's test pipeline gives values from {inputs.min():g} to {inputs.max():g}. "
                'Export it without --preprocess.')
        return in_float32(self.engine(images.permute(0, 2, 3, 1).cpu().numpy()))

    def logits(self, inputs: Tensor, metas: Sequence[dict]) -> Tensor:     # N, 3, H, W -> N, classes, H, W
        """In place of mmseg's `encode_decode`, called on an image or on each window of it."""
        outputs = self.run(inputs)
        classes = self.model.out_channels
        if 'logits' in outputs:
            self._check_classes(outputs['logits'].shape[1], classes)
            return torch.from_numpy(outputs['logits']).to(inputs.device)

        labels = torch.from_numpy(outputs['labels'].astype(np.int64)).to(inputs.device)
        largest = int(labels.max())
        if classes == 1:
            self._check_classes(max(2, largest + 1), 2)
            return (labels[:, None] * 2. - 1) * CERTAIN
        self._check_classes(max(classes, largest + 1), classes)
        return F.one_hot(labels, classes).movedim(-1, 1).float()

    def detections(
        self, outputs: dict[str, np.ndarray], samples: Sequence[BaseDataElement]
    ) -> list[InstanceData]:
        """In place of `predict` of mmdet's heads, in pixels of the original image."""
        sample, = samples
        description = self.engine.description
        classes = num_classes_of(self.model)
        if description.nms == 'inside':
            largest = int(outputs['labels'].max(initial=-1))
            self._check_classes(max(classes, largest + 1), classes)
        else:
            self._check_classes(outputs['scores'].shape[2], classes)
            description = replace(description, test_cfg=self.model.bbox_head.test_cfg)

        shape = sample.img_shape if self.inside else sample.batch_input_shape
        found, = detect(outputs, description, shape, sample.img_shape, sample.scale_factor)

        boxes, scores, labels = map(torch.from_numpy, found[:3])
        instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        if found.masks is not None:
            instances.masks = self.pasted(found.masks, boxes, sample)
        return [instances]

    def pasted(self, masks: np.ndarray, boxes: Tensor, sample: BaseDataElement) -> Tensor:
        """Masks (n, h, w) of boxes as booleans of the original image's pixels, by mmdet's own head."""
        head = mask_head_of(self.model)
        found = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(len(boxes), dtype=torch.long))
        size = dict(ori_shape=sample.ori_shape, scale_factor=(1., 1.))
        found, = head.predict_by_feat(
            [masks[:, None]], [found], [size], self.model.roi_head.test_cfg, rescale=True, activate_map=True)
        return found.masks

    def _check_classes(self, found: int, wanted: int) -> None:
        if found != wanted:
            raise _misfit(self.engine, f'{found} classes', f'{wanted}')


def _check_fit(cfg: Config, engine: Engine, model: nn.Module) -> None:
    """Raise UserError if the engine was exported for another task, number of classes or preprocessing than `cfg`'s.

    `model` is the model of `cfg`.
    """
    description = engine.description
    if is_segmentor(model):
        task = 'segmentation'
    elif is_detector(model):
        task = 'detection'
    else:
        task = type(model).__name__
    if description.task != task:
        raise _misfit(engine, description.task, task)

    classes = num_classes_of(model)
    names = description.classes
    if names and len(names) != classes:
        raise _misfit(engine, f'{len(names)} classes ({", ".join(names[:8])})', f'{classes}')

    if mask_head_of(model) is not None and 'masks' not in description.outputs:
        raise _misfit(engine, 'no masks', 'a mask head')

    for name, wanted in asdict(Preprocessing.of_config(cfg)).items():
        made_with = getattr(description.preprocessing, name)
        if isinstance(wanted, Sequence):
            wanted = list(wanted)
        if made_with != wanted:
            raise _misfit(engine, f'preprocessing with {name}={made_with}', f'{wanted}')


def _check_test_cfg(engine: Engine, model: nn.Module) -> None:
    """Raise UserError if the detections of an engine are chosen by other settings than the config's."""
    wanted = settings_of(model)
    made_with = engine.description.test_cfg
    if made_with == wanted:
        return

    changed = []
    for name in {**made_with, **wanted}:
        if made_with.get(name) != wanted.get(name):
            changed.append(name)
    found = ', '.join(f'{name}={made_with.get(name)}' for name in changed)
    expected = ', '.join(f'{name}={wanted.get(name)}' for name in changed)
    raise _misfit(engine, f'suppression inside with test_cfg.{found}', expected)


def _stacking(cfg: Config) -> nn.Module:
    """The config's data preprocessor without anything that the engine does itself."""
    settings = dict(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor'))
    for key, value in UNTOUCHED.items():
        if key in settings:
            settings[key] = value
    return MODELS.build(settings)


def _misfit(engine: Engine, found: str, wanted: str) -> UserError:
    return UserError(
        f'An engine is tested with the config it was exported with, and {engine.path} has {found}, the '
        f'config {wanted}. Give that config, or export again with this one.')
