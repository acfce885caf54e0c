"""What `engine.json` holds: the description of an engine, the one format that leaves this project."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from os import PathLike
from pathlib import Path

from ..errors import UserError
from ..files.atomic import sha256_of
from .onnx_file import external_files

FORMAT = 1
SUFFIXES = {'.onnx': 'onnxruntime', '.xml': 'openvino', '.plan': 'tensorrt'}  # of engines, and what runs them
PLAN = '.plan'  # built by TensorRT of a described engine in .onnx, and described by the same file
PROPERTIES = {'INFERENCE_PRECISION_HINT': ('f32', 'bf16')}  # of OpenVINO, with which an engine is loaded
DTYPES = ('float32', 'float16', 'uint8')
LAYOUTS = ('NCHW', 'NHWC')
LARGEST = 1 << 16  # side of an image, in pixels
NOT_WRITTEN_IF_NONE = ('levels', 'test_cfg', 'nms', 'quantisation', 'clipped', 'half')


@dataclass(frozen=True)
class Input:
    """One image or a batch, as the engine takes it; None in `shape` is a dynamic size."""

    name: str
    dtype: str
    layout: str  # NCHW, or NHWC where preprocessing is inside
    shape: list[int | None]

    def __str__(self) -> str:
        sizes = ['any' if size is None else str(size) for size in self.shape]
        return f'{self.dtype} images of ({", ".join(sizes)}) ({self.layout})'


@dataclass(frozen=True)
class InputPreprocessing:
    """What is done to BGR images of 0 to 255 before the network, and whether the engine does it."""

    mean: list[float] | None
    std: list[float] | None
    swap_channels: bool
    pad_divisor: int
    pad_value: float
    inside: bool


@dataclass(frozen=True)
class Comparison:
    """Worst relative error of each output against PyTorch, on one input of `shape`."""

    shape: list[int]
    errors: dict[str, float]


@dataclass(frozen=True)
class Attempt:
    """Of quantising: channels equalised or not, the convolutions left in float32, the metric reached, None before it is
    measured, and weights rounded by GPTQ or not.
    """

    equalised: bool
    float32: list[str]
    metric: float | None
    rounded: bool = False


@dataclass(frozen=True)
class Quantisation:
    """How an int8 engine came to be. Metrics are in points: mIoU, or mAP x 100; `layers` are `LayerNoise`."""

    calib_images: int
    metric: str
    float32: float
    int8: float
    drop: float
    max_drop: float
    tried: list[Attempt]
    layers: list[dict]


@dataclass(frozen=True)
class Half:
    """Of an engine in fp16: what stays in float32, and its metric in points, None where there was no data for it."""

    float32: list[str]  # nodes of the graph whose numbers come near the end of float16's range, or pass it
    images: int         # on which that was seen
    of_training_set: bool  # those images; random ones where there is no data
    metric: str | None = None
    metric_float32: float | None = None
    metric_half: float | None = None
    drop: float | None = None


@dataclass(frozen=True)
class Description:
    """Everything that a program needs to know of an engine, and where it came from."""

    task: str                            # segmentation or detection
    model: str
    arch: object
    classes: list[str] | None
    palette: list | None                 # RGB
    source: str                          # name of the checkpoint
    source_sha256: str
    versions: dict[str, str]
    engine: str                          # onnx or openvino
    precision: str                       # fp32, fp16, bf16 or int8
    outputs: list[str]
    input: Input
    openvino_properties: dict
    preprocessing: InputPreprocessing
    graph: dict[str, int]                # operators of the exported graph
    files: dict[str, str] = field(default_factory=dict)  # name and sha256; filled by `write_description`
    compared: list[Comparison] = field(default_factory=list)
    tolerance: float | None = None
    computed_in: str | None = None       # on the machine that exported
    levels: list | None = None           # of a detector: rows, columns of a stride, priors a position
    test_cfg: dict | None = None         # of a detector: settings of its post-processing
    nms: str | None = None               # of a detector: where suppression happens
    quantisation: Quantisation | None = None
    half: Half | None = None
    clipped: bool | None = None          # of a detector: False where its head's boxes may reach beyond the image
    format: int = FORMAT


def write_description(path: Path, description: Description) -> Description:
    """Write the description of the engine at `path` beside it, with the sha256 of each of its files.

    Returns what was written; `description` itself is not changed.
    """
    files = {}
    for name in (path.name, *_loaded_with(path)):
        file = path.with_name(name)
        if file.is_file():
            files[name] = sha256_of(file)
    description = replace(description, files=files)

    content = asdict(description)
    for name in NOT_WRITTEN_IF_NONE:
        if content[name] is None:
            del content[name]
    path.with_suffix('.json').write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    return description


def read_description(path: str | PathLike) -> Description:
    """The description of the engine at `path` (.onnx, .xml or .plan), whose files it must be that of.

    A plan is built after its description, which cannot hold its sha256: of the described files those that are beside
    it must be the described ones, and a runtime compares the plan's names, type and sizes.

    Raises:
        UserError: the engine or its description is missing or damaged, the description has another format or lacks
            a field, or the files are not of the same export.
    """
    path = Path(path)
    if not is_engine(path) or not path.is_file():
        found = 'none' if path.exists() else 'missing'
        raise UserError(
            f'An engine is a file in {", ".join(SUFFIXES)}, and {path} is {found}. '
            'Give one that tools/export.py wrote.')

    file = path.with_suffix('.json')
    try:
        if file.exists() and not file.is_file():
            raise OSError('not a regular file')
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise _not_all_files(path, file, error) from None

    description = description_from(content, file)
    _check_values(file, description)
    _check_properties(file, description.openvino_properties)

    expected = description.files
    if path.suffix == PLAN:
        expected = {name: sha256 for name, sha256 in expected.items() if (path.parent / name).exists()}
        _check_plan(path, file, description)
    _check_files(path, file, expected)
    return description


def description_from(content: object, source: object) -> Description:
    """The description in the content of an `engine.json`, checked field by field.

    Files that were written before formats were counted have no `format`; their fields are those of format 1.

    Raises:
        UserError: an unknown format, a field that is missing or of another type.
    """
    if not isinstance(content, Mapping):
        raise UserError(
            f'The description of an engine is a JSON object, and {source} holds a {type(content).__name__}. '
            'Copy all files of the export, or export again.')

    found = content.get('format', FORMAT)
    if found != FORMAT:
        raise UserError(
            f'The description of an engine has format {FORMAT} here, and {source} has format {found!r}. '
            'Export again with this version of repvgg_mm, or use the version that wrote it.')
    return _read_part(Description, content, source, place='')


def is_engine(path: str | PathLike) -> bool:
    """Whether a command line's `path` names an engine rather than a checkpoint."""
    return Path(path).suffix in SUFFIXES


def _check_values(file: Path, description: Description) -> None:
    """UserError for values that no export writes, and with which nothing can be computed."""
    preprocessing, levels = description.preprocessing, description.levels or []
    sizes = [size for size in description.input.shape if size is not None]
    numbers = [*(preprocessing.mean or []), *(preprocessing.std or []), preprocessing.pad_value]
    rules = {
        'input.shape': len(description.input.shape) == 4 and all(0 < size <= LARGEST for size in sizes),
        'input.dtype': description.input.dtype in DTYPES,
        'input.layout': description.input.layout in LAYOUTS,
        'outputs': len(description.outputs) > 0,
        'preprocessing': all(map(math.isfinite, numbers)) and 0 not in (preprocessing.std or []),
        'preprocessing.pad_divisor': 0 < preprocessing.pad_divisor <= LARGEST,
        'levels': all(map(_is_level, levels)),
    }
    for name, holds in rules.items():
        if not holds:
            part: object = description
            for step in name.split('.'):
                part = getattr(part, step)
            raise UserError(
                f'The field {name!r} of the description of an engine has values that an export writes, and in '
                f'{file} it is {str(part)[:200]}. Copy all files of the export, or export again.')


def _is_level(level: object) -> bool:
    """Rows, columns of a stride, priors of a position."""
    is_triple = isinstance(level, list) and len(level) == 3
    return is_triple and all(type(number) is int and 0 < number <= LARGEST for number in level)


def _check_properties(file: Path, properties: Mapping) -> None:
    """UserError for properties that no export writes: some let OpenVINO write files or load libraries."""
    for name, value in properties.items():
        if value not in PROPERTIES.get(name, ()):
            raise UserError(
                f'An engine is loaded with the properties {PROPERTIES}, and {file} has {name}={value!r}. '
                'Export it again, or do not use it if you do not know where it comes from.')


def _check_files(path: Path, file: Path, expected: Mapping[str, str]) -> None:
    """UserError unless every file is beside the engine and the one that was described."""
    changed = []
    for name, sha256 in expected.items():
        beside = path.parent / name
        if Path(name).name != name or '\\' in name or (beside.exists() and not beside.is_file()):
            raise UserError(
                f'The files of an engine are regular files in its folder, and {file} names {name!r}. Export it again, '
                'or do not use it if you do not know where it comes from.')
        try:
            found = sha256_of(beside)
        except OSError as error:
            raise _not_all_files(path, file, error) from None
        if found != sha256:
            changed.append(name)

    if not changed and path.suffix != PLAN:  # what else a damaged file would be read with is not known
        changed = [name for name in (path.name, *_loaded_with(path)) if name not in expected]
    if changed:
        raise UserError(
            f'The files of an engine belong to one export, and {", ".join(changed)} is not '
            f'the file that {file} describes. Copy all files again, or export again.')


def _check_plan(path: Path, file: Path, description: Description) -> None:
    """UserError where what is described beside a plan is no engine that TensorRT builds a plan of."""
    if description.engine != 'onnx':
        raise UserError(
            f'A plan is built of an engine in .onnx and described by the same file, and {file} beside {path} describes '
            f'one of {description.engine}. Put the description of that .onnx file there.')


def _loaded_with(path: Path) -> list[str]:
    """Names of the files that a library reads when it loads the engine at `path`: its weights, where they are apart."""
    if path.suffix == '.xml':
        return [path.with_suffix('.bin').name]
    try:
        return sorted(external_files(path.read_bytes()))
    except ValueError as error:
        raise UserError(
            f'An engine in .onnx is a graph in ONNX\'s format, and {path} is not ({error}). '
            'Copy all files again, or export again.') from None


def _not_all_files(path: Path, file: Path, error: Exception) -> UserError:
    return UserError(
        f'An engine has its description, {file.name}, and its other files beside it, and '
        f'{path} has not ({type(error).__name__}: {error}). Copy all files of the export.')


def _read_part(cls: type, content: Mapping, source: object, place: str):
    """A dataclass of this file from the part of a JSON object that stands at `place`."""
    hints = typing.get_type_hints(cls)
    values = {}
    for part in fields(cls):
        name = f'{place}{part.name}'
        optional = part.default is not MISSING or part.default_factory is not MISSING
        if part.name in content:
            values[part.name] = _read_value(hints[part.name], content[part.name], source, name)
        elif not optional:
            raise UserError(
                f'The description of an engine has a field {name!r}, and {source} has none. '
                'Copy all files of the export, or export again.')
    return cls(**values)


def _read_value(hint: object, value: object, source: object, name: str):
    """`value` of a field annotated with `hint`, with dataclasses made of objects inside it."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint, = (choice for choice in typing.get_args(hint) if choice is not type(None))

    if is_dataclass(hint) and isinstance(value, Mapping):
        return _read_part(hint, value, source, f'{name}.')
    if typing.get_origin(hint) is list and isinstance(value, list):
        inside, = typing.get_args(hint)
        return [_read_value(inside, one, source, f'{name}[{i}]') for i, one in enumerate(value)]

    kind = typing.get_origin(hint) or hint
    if kind is float:
        kind = (int, float)
    is_number = kind in (int, (int, float))
    if is_dataclass(hint) or not isinstance(value, kind) or (is_number and isinstance(value, bool)):
        wanted = getattr(typing.get_origin(hint) or hint, '__name__', str(hint))
        raise UserError(
            f'The field {name!r} of the description of an engine is a {wanted}, and in {source} it is {value!r}. '
            'Copy all files of the export, or export again.')
    return value
