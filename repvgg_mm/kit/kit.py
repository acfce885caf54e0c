"""The folder to hand over, made of an exported engine and the config's data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..engine.engine import Engine, optional
from ..errors import UserError
from ..export.export import Exported
from ..export.target import Target
from ..files.atomic import atomic_folder, check_output_folder
from ..openmmlab.data import training_set, validation_set
from ..precision.calibration import evenly_spread, inputs_of, picture_names
from . import check
from .readme import readme

EXPECTED = 4  # images whose outputs are in a kit
Progress = Callable[[str], None]


def check_kit(cfg: Config, kit: Path, out: Path, target: Target, *, overwrite: bool) -> None:
    """Before the work of an export: whether a kit can be made of it.

    Raises:
        UserError: the engine would have no fixed shape or not be ONNX, the folder is `out`, a file, not empty or
            cannot be written to, or there are no training data.
    """
    if target.engine != 'onnx':
        raise UserError(
            f'A kit is an engine in ONNX, which every tool takes, and --kit was given with --engine {target.engine}. '
            'Leave --engine out; OpenVINO reads ONNX too.')
    if target.dynamic:
        raise UserError(
            'A kit has an engine of one size, since the tools of devices want one, and --kit was given with --dynamic. '
            'Leave one of them out; --shape H W chooses the size.')
    if kit.resolve() == out.resolve():
        raise UserError(f'--kit is a folder of its own, and {kit} is that of --out too. Choose another.')

    check_output_folder(kit, overwrite, '--kit')
    training_set(cfg)


def write_kit(cfg: Config, exported: Exported, kit: Path, *, calib_images: int, progress: Progress = print) -> None:
    """Write the folder `kit`: all of it, or nothing. Its former `calibration` and `expected` are replaced.

    Raises:
        UserError: as `check_kit`, or the pictures do not fit the engine.
    """
    engine = Engine(exported.path)
    description = exported.description

    with atomic_folder(kit) as folder:
        for name in (*description.files, exported.path.with_suffix('.json').name):
            shutil.copyfile(exported.path.with_name(name), folder / name)

        progress('Preparing training images for the kit')
        dataset = training_set(cfg)
        chosen = evenly_spread(len(dataset), calib_images)
        calibration = inputs_of(cfg, engine, dataset, chosen)
        _write_inputs(folder / 'calibration', calibration, '{:04}.npy', picture_names(dataset, chosen))

        progress(f'Computing the outputs of {EXPECTED} images for the kit')
        if cfg.get('val_dataloader'):
            dataset = validation_set(cfg)
        chosen = evenly_spread(len(dataset), EXPECTED)
        expected = inputs_of(cfg, engine, dataset, chosen)
        name = description.input.name
        _write_inputs(folder / 'expected', expected, f'{{}}_{name}.npy', picture_names(dataset, chosen))
        for number, inputs in enumerate(expected):
            for name, output in engine(inputs).items():
                np.save(folder / 'expected' / f'{number}_{name}.npy', output)

        shutil.copyfile(check.__file__, folder / 'check.py')
        text = readme(
            description,
            opset=_opset(exported.path),
            onnxruntime=optional('onnxruntime').__version__,
            calibration=len(calibration),
            expected=len(expected))
        (folder / 'README.md').write_text(text, encoding='utf-8')
        progress(f'Writing {kit}')


def _write_inputs(folder: Path, inputs: Sequence[np.ndarray], pattern: str, names: Sequence[str]) -> None:
    folder.mkdir()
    for number, one in enumerate(inputs):
        np.save(folder / pattern.format(number), one)
    (folder / 'names.txt').write_text('\n'.join(names) + '\n', encoding='utf-8')


def _opset(path: Path) -> int:
    """Of ONNX's own operators."""
    model = optional('onnx').load(path, load_external_data=False)
    version, = (opset.version for opset in model.opset_import if opset.domain in ('', 'ai.onnx'))
    return version
