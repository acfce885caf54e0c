"""An exported engine in a program, whichever library runs it, with its description beside it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import LONGEST_REASON, UserError
from .description import SUFFIXES, Description, read_description

Runner = Callable[[np.ndarray], list[np.ndarray]]
INSTALL = "Install the extra in the repository: pip install -e '.[export]'"


def optional(module: str) -> ModuleType:
    """Import a package of the extra `export`, or raise UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'Exporting and running engines needs {module}, which cannot be imported ({error}). {INSTALL}.') from None


class Engine:
    """`engine.onnx` or `engine.xml` (with `engine.bin`), described by `engine.json` beside it.

    Called with images as `description.input` describes them (array or CPU tensor), it returns the outputs by
    name: `logits` (N, classes, H, W) or `labels` (N, H, W); or `boxes` (N, P, 4), `scores`
    (N, P, classes) and, of some heads, `score_factors` (N, P), for `detections.detect`.
    `computed_in` is the number format that the library chose on this machine.

    Args:
        path: the `.onnx` or `.xml` file.
        threads: of a call; the library's choice by default.

    Raises:
        UserError: a file is missing, damaged or of another export, or the library is not installed.
    """

    def __init__(self, path: str | PathLike, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self.description = read_description(self.path)
        self.library = SUFFIXES[self.path.suffix]
        load = _onnxruntime if self.library == 'onnxruntime' else _openvino
        try:
            self._run, self.computed_in = load(self.path, self.description, threads)
        except UserError:
            raise
        except Exception as error:  # what the libraries raise for a file that they cannot read depends on the file
            raise UserError(
                f'An engine is a file that {self.library} can load, and {self.path} is not ({_last_line(error)}). '
                'Export it again.') from None

    def __call__(self, images: object) -> dict[str, np.ndarray]:
        """Raises UserError if `images` have another type or shape than the engine was exported for, or it fails."""
        images = np.ascontiguousarray(images)
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
                f'An engine runs in {self.library}, and {self.path} fails there ({_last_line(error)}). '
                'Free memory, or export it again.') from None
        return dict(zip(self.description.outputs, outputs))

    def _takes(self, images: np.ndarray) -> bool:
        wanted = self.description.input
        if images.dtype != wanted.dtype or images.ndim != len(wanted.shape) or not images.size:
            return False
        return all(size in (None, got) for size, got in zip(wanted.shape, images.shape))


def _last_line(error: Exception) -> str:
    """Where the libraries say what is wrong, after the places in their code."""
    return str(error).strip().split('\n')[-1][-LONGEST_REASON:]


def _check_graph(path: Path, description: Description, inputs: list[str], outputs: list[str]) -> None:
    """UserError unless the graph has the input and the outputs that are described."""
    absent = {name for name in description.outputs if name not in outputs} | {description.input.name} - {*inputs}
    if absent:
        raise UserError(
            f'An engine takes the input and gives the outputs of its description, and {path} with {inputs} and '
            f'{outputs} has no {", ".join(sorted(absent))}. Copy all files of the export, or export again.')


def _onnxruntime(path: Path, description: Description, threads: int | None) -> tuple[Runner, str]:
    onnxruntime = optional('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too, and told in a sentence
    options.add_session_config_entry('session.force_spinning_stop', '1')  # its threads would slow what comes next
    if threads:
        options.intra_op_num_threads = threads

    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    inputs = [part.name for part in session.get_inputs()]
    _check_graph(path, description, inputs, [part.name for part in session.get_outputs()])
    name = description.input.name

    def run(images: np.ndarray) -> list[np.ndarray]:
        return session.run(description.outputs, {name: images})
    return run, 'f32'


def _openvino(path: Path, description: Description, threads: int | None) -> tuple[Runner, str]:
    openvino = optional('openvino')
    properties = {'PERFORMANCE_HINT': 'LATENCY', **description.openvino_properties}
    if threads:
        properties['INFERENCE_NUM_THREADS'] = threads

    compiled = openvino.Core().compile_model(path, 'CPU', properties)
    inputs, outputs = ([name for part in parts for name in part.names] for parts in (compiled.inputs, compiled.outputs))
    _check_graph(path, description, inputs, outputs)
    request = compiled.create_infer_request()
    name = description.input.name

    def run(images: np.ndarray) -> list[np.ndarray]:
        request.infer({name: images}, share_inputs=True)
        return [request.get_tensor(output).data.copy() for output in description.outputs]
    return run, compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()
