"""The commands that build a TensorRT plan of an ONNX engine, for a machine with a GPU."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..engine.description import PLAN, Description
from .agreement import size_text
from .engine_files import STEM

LARGEST_BATCH = 4  # of a plan of a dynamic engine
TOLERANCES = dict(fp32='1e-3', fp16='1e-2', int8='1e-1')  # of each element, absolute and relative
RANGES = dict(uint8='[0,255]')  # of random images; normalised ones otherwise


def tensorrt_commands(description: Description, name: str = f'{STEM}.onnx') -> str:
    """Build the plan of the engine in the file `name` beside it, and compare TensorRT with ONNX Runtime.

    The types stand in the graph, in int8 as pairs of QuantizeLinear and DequantizeLinear: TensorRT 11 computes in them
    always, 10.12 and newer with `--stronglyTyped`. A plan of a dynamic engine is for one size of images, in batches up
    to `LARGEST_BATCH`.
    """
    plan = str(Path(name).with_suffix(PLAN))
    build = ['trtexec', f'--onnx={name}', f'--saveEngine={plan}', '--stronglyTyped', *_build_shapes(description)]
    if description.precision == 'fp32':
        build.append('--noTF32')

    image = description.input.name
    tolerance = TOLERANCES[description.precision]
    compare = ['polygraphy', 'run', name, '--trt', '--strongly-typed', '--onnxrt']
    compare += ['--val-range', f'{image}:{RANGES.get(description.input.dtype, "[-2,2]")}']
    if None in description.input.shape:
        sizes = ','.join(map(str, description.compared[0].shape))
        compare += ['--input-shapes', f'{image}:[{sizes}]']
    compare += ['--rtol', tolerance, '--atol', tolerance]
    return f'{shlex.join(build)}\n{shlex.join(compare)}'


def _build_shapes(description: Description) -> list[str]:
    """trtexec's flags for the sizes that a dynamic engine is to take."""
    if None not in description.input.shape:
        return []
    batch, *image = description.compared[0].shape
    shapes = dict(min=[1, *image], opt=[batch, *image], max=[LARGEST_BATCH, *image])
    return [f'--{kind}Shapes={description.input.name}:{size_text(shape)}' for kind, shape in shapes.items()]
