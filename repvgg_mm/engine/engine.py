"""An exported engine in a program, whichever library runs it, with its description beside it."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import UserError

SUFFIXES = {'.onnx': 'onnxruntime', '.xml': 'openvino'}
Runner = Callable[[np.ndarray], list[np.ndarray]]
INSTALL = "Install the extra in the repository: pip install -e '.[export]'"


def optional(module: str) -> ModuleType:
    """Import a package of the extra `export`, or raise UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f'Exporting and running engines needs {module}, which cannot be imported ({error}). '
                        f'{INSTALL}.') from None


class Engine:
    """`engine.onnx` or `engine.xml` (with `engine.bin`), described by `engine.json` beside it.

    Called with images as `meta['input']` describes them (array or CPU tensor), it returns the outputs by
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
        self.meta = read_meta(self.path)
        library = SUFFIXES[self.path.suffix]
        try:
            load = _onnxruntime if library == 'onnxruntime' else _openvino
            self._run, self.computed_in = load(self.path, self.meta, threads)
        except UserError:
            raise
        except Exception as error:  # what the libraries raise for a file that they cannot read depends on the file
            raise UserError(f'An engine is a file that {library} can load, and {self.path} is not '
                            f'({str(error).strip().splitlines()[0][:200]}). Export it again.') from None

    def __call__(self, images: object) -> dict[str, np.ndarray]:
        """Raises UserError if `images` have another type or shape than the engine was exported for."""
        images = np.ascontiguousarray(images)
        wanted = self.meta['input']
        fits = images.dtype == wanted['dtype'] and images.ndim == len(wanted['shape']) and all(
            size in (None, got) for size, got in zip(wanted['shape'], images.shape)) and images.size
        if not fits:
            others = ['--shape H W', '--dynamic', *(['--preprocess'] if wanted['layout'] == 'NCHW' else [])]
            raise UserError(f'{self.path} takes {describe(wanted)}, got {images.dtype} of {images.shape}. '
                            f'Feed it such images, or export with {" or ".join(others)}.')
        return dict(zip(self.meta['outputs'], self._run(images)))


def describe(wanted: dict) -> str:
    """`meta['input']` in words, such as 'float32 images of (1, 3, 180, 240) (NCHW)'."""
    shape = ', '.join('any' if size is None else str(size) for size in wanted['shape'])
    return f'{wanted["dtype"]} images of ({shape}) ({wanted["layout"]})'


def read_meta(path: str | PathLike) -> dict:
    """The description of an engine.

    Raises:
        UserError: the engine or its description is missing or damaged, or they are not of the same export.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UserError(f'An engine is a file in {" or ".join(SUFFIXES)}, and {path} is '
                        f'{"none" if path.exists() else "missing"}. Give one that tools/export.py wrote.')
    description = path.with_suffix('.json')
    try:
        meta = json.loads(description.read_text())
        files = {name: (path.parent / name).read_bytes() for name in meta['files']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'An engine has its description, {description.name}, and its other files beside it, and '
                        f'{path} has not ({type(error).__name__}: {error}). Copy all files of the export.') from None
    changed = [name for name, content in files.items() if hashlib.sha256(content).hexdigest() != meta['files'][name]]
    if changed or path.name not in files:
        raise UserError(f'The files of an engine belong to one export, and {", ".join(changed) or path.name} is not '
                        f'the file that {description} describes. Copy all files again, or export again.')
    return meta


def is_engine(path: str | PathLike) -> bool:
    """Whether a command line's `path` names an engine rather than a checkpoint."""
    return Path(path).suffix in SUFFIXES


def _onnxruntime(path: Path, meta: dict, threads: int | None) -> tuple[Runner, str]:
    onnxruntime = optional('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry('session.force_spinning_stop', '1')  # its threads would slow what comes next
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    name = meta['input']['name']
    return (lambda images: session.run(meta['outputs'], {name: images})), 'f32'


def _openvino(path: Path, meta: dict, threads: int | None) -> tuple[Runner, str]:
    openvino = optional('openvino')
    properties = {'PERFORMANCE_HINT': 'LATENCY', **meta['openvino_properties']}
    if threads:
        properties['INFERENCE_NUM_THREADS'] = threads
    compiled = openvino.Core().compile_model(path, 'CPU', properties)
    request = compiled.create_infer_request()
    name = meta['input']['name']

    def run(images: np.ndarray) -> list[np.ndarray]:
        request.infer({name: images}, share_inputs=True)
        return [request.get_tensor(output).data.copy() for output in meta['outputs']]
    return run, compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()
