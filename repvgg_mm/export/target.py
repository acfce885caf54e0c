"""What to export, and the checks that its parts go together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..environment import torch_at_least
from ..errors import UserError
from ..openmmlab.model import check_size

ENGINES = ('onnx', 'openvino')
OLDEST_TORCH = '2.8'
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')
IO_DTYPES = ('float32', 'float16')


@dataclass(frozen=True)
class Target:
    """What to export: see the flags of tools/export.py.

    Raises:
        UserError: values that do not go together, or a size without a pixel.
    """

    engine: str = 'onnx'
    precision: str = 'fp32'
    shape: Sequence[int] | None = None  # height, width
    dynamic: bool = False
    argmax: bool = False
    preprocess: bool = False
    calib_images: int = 100  # of fp16 and int8, and max_drop too
    max_drop: float = 0.3    # points of mIoU, or of mAP x 100
    nms: bool = False        # a detector ends at its detections
    io_dtype: str = 'float32'  # of inputs and outputs in fp16

    def __post_init__(self) -> None:
        if self.engine not in ENGINES or self.precision not in PRECISIONS:
            raise UserError(
                f'Engines are {", ".join(ENGINES)} in {", ".join(PRECISIONS)}, got {self.engine} in '
                f'{self.precision}. Choose one of each.')
        if (self.engine, self.precision) == ('onnx', 'bf16'):
            raise UserError(
                "ONNX Runtime's CPU kernels compute convolutions in float32, and --precision bf16 was "
                'asked for. Use --engine openvino, or leave --precision out.')
        if (self.engine, self.precision) == ('openvino', 'fp16'):
            raise UserError(
                'The types of an engine in fp16 stand in its ONNX graph, and --engine openvino was asked for. Leave '
                '--engine out; OpenVINO reads ONNX too, and computes in half itself where a device does.')
        if self.io_dtype not in IO_DTYPES or (self.io_dtype == 'float16' and self.precision != 'fp16'):
            raise UserError(
                f'Inputs and outputs are {" or ".join(IO_DTYPES)}, float16 in fp16 alone, and --io-dtype '
                f'{self.io_dtype} was asked for in {self.precision}. Leave it out, or use --precision fp16.')

        if self.calib_images < 1:
            raise UserError(
                'Quantising measures ranges on training images, and --calib-images '
                f'{self.calib_images} leaves none. Choose 1 or more.')
        if not math.isfinite(self.max_drop):
            raise UserError(f'--max-drop is a number of points, such as 0.3, got {self.max_drop}. Choose one.')
        if self.shape is not None:
            check_size(self.shape)

    @property
    def dynamic_axes(self) -> tuple[int, ...]:
        """Batch, height and width of the input, if any size is taken."""
        if not self.dynamic:
            return ()
        return (0, 1, 2) if self.preprocess else (0, 2, 3)


def check_exporter() -> None:
    """Raise UserError if this torch has no exporter that keeps a size of the input open."""
    if not torch_at_least(OLDEST_TORCH):
        raise UserError(
            f'Engines are written by the exporter of torch {OLDEST_TORCH} or newer, and this is torch '
            f'{torch.__version__}. A converted checkpoint is plain tensors: export it in an environment with a '
            'newer torch.')
