"""An exported engine in a program, whichever library runs it, with its description beside it."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

import numpy as np

from ..errors import UserError
from .description import SUFFIXES, read_description
from .packages import optional
from .runtimes import LOADERS, device_of, last_line

OF_VERSIONS = re.compile('opset|IR version')  # where a library tells that a graph is newer than itself


class Engine:
    """`engine.onnx`, `engine.xml` (with `engine.bin`) or TensorRT's `engine.plan`, with `engine.json` beside it.

    Called with images as `description.input` describes them (array or CPU tensor; float32 is rounded for an engine that
    takes float16), it returns the outputs by name: `logits` (N, classes, H, W) or `labels` (N, H, W); or `boxes`
    (N, P, 4), `scores` (N, P, classes) and, of some heads, `score_factors` (N, P), for `detections.detect`, which takes
    those of an engine with suppression inside, too.
    `library` runs it on `device`, with floating-point numbers in the format `computed_in`: f32, tf32 (where the GPU
    has it), f16 or bf16.

    Args:
        path: the `.onnx`, `.xml` or `.plan` file.
        device: cpu by default; of `.onnx` also cuda or tensorrt, of `.xml` gpu; a second GPU is cuda:1. A `.plan` runs
            on cuda alone.
        threads: of a call on the CPU; the library's choice by default.

    Raises:
        UserError: a file is missing, damaged or of another export, the library is not installed, or it cannot use the
            device.
    """

    def __init__(self, path: str | PathLike, *, device: str | None = None, threads: int | None = None) -> None:
        self.path = Path(path)
        self.description = read_description(self.path)
        self.library = SUFFIXES[self.path.suffix]
        wanted = device_of(self.library, device)
        self.device = str(wanted)
        load = LOADERS[self.library]
        try:
            self._run, self.computed_in = load(self.path, self.description, wanted, threads)
        except UserError:
            raise
        except Exception as error:  # what the libraries raise for a file that they cannot read depends on the file
            next_step = 'Export it again.'
            if OF_VERSIONS.search(str(error)):
                version = optional(self.library).__version__
                next_step = f'Install a newer {self.library} than {version}, or export it again.'
            raise UserError(
                f'An engine is a file that {self.library} can load, and {self.path} is not ({last_line(error)}). '
                f'{next_step}') from None

    def __call__(self, images: object) -> dict[str, np.ndarray]:
        """Raises UserError if `images` have another type or shape than the engine was exported for, or it fails."""
        images = np.ascontiguousarray(images)
        if self.description.input.dtype == 'float16' and images.dtype == np.float32:
            images = images.astype(np.float16)
        if not self._takes(images):
            others = ['--shape H W', '--dynamic']
            if self.description.input.layout == 'NCHW':
                others.append('--preprocess')
            raise UserError(
                f'{self.path} takes {self.description.input}, got {images.dtype} of {images.shape}. '
                f'Feed it such images, or export with {" or ".join(others)}.')

        try:
            outputs = self._run(images)
        except Exception as error:
            raise UserError(
                f'An engine runs in {self.library}, and {self.path} fails there ({last_line(error)}). '
                'Free memory, or export it again.') from None
        return dict(zip(self.description.outputs, outputs))

    def _takes(self, images: np.ndarray) -> bool:
        wanted = self.description.input
        if images.dtype != wanted.dtype or images.ndim != len(wanted.shape) or not images.size:
            return False
        return all(size in (None, got) for size, got in zip(wanted.shape, images.shape))
