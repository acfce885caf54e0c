"""What a config's data preprocessor does to an image before the network sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import Config

from ..errors import UserError
from .config import config_dicts


@dataclass(frozen=True)
class Preprocessing:
    """What a config's data preprocessor does to BGR images of 0 to 255 in evaluation."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    swap_channels: bool
    pad_divisor: int
    pad_value: float

    @classmethod
    def of_config(cls, cfg: Config) -> Preprocessing:
        """From the model's `data_preprocessor`, or that of the config itself, as a Runner does.

        Raises:
            UserError: it pads to a fixed size.
        """
        settings = cfg.get('data_preprocessor') or {}
        for part in config_dicts(cfg.model):
            if part.get('data_preprocessor'):
                settings = part['data_preprocessor']
                break

        padding = settings.get('test_cfg') or {}  # of mmseg; mmdet pads by pad_size_divisor
        if padding.get('size'):
            raise UserError(
                'An engine pads images to a multiple, and this data_preprocessor pads them to '
                f'{padding["size"]} in tests. Export with that --shape and without data_preprocessor.test_cfg.')

        return cls(
            mean=settings.get('mean'),
            std=settings.get('std'),
            swap_channels=bool(settings.get('bgr_to_rgb') or settings.get('rgb_to_bgr')),
            pad_divisor=padding.get('size_divisor') or settings.get('pad_size_divisor') or 1,
            pad_value=settings.get('pad_val', settings.get('pad_value', 0)))
