"""From a trained checkpoint to an engine: fuse, export, check the graph, run it, compare, write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import mmengine
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ..deploy.checkpoint import Checkpoint
from ..deploy.config import deploy_config
from ..deploy.conversion import Conversion, convert_checkpoint, in_channels
from ..engine.description import Description, Input, InputPreprocessing, write_description
from ..engine.detections import check_settings, level_sizes
from ..engine.engine import Engine, optional
from ..errors import UserError
from ..files.atomic import atomic_folder, check_output_folder
from ..openmmlab.data import check_dataset, validation_set
from ..openmmlab.model import arch_of_config, build_model, is_segmentor, settings_of, shape_of_config
from ..openmmlab.preprocessing import Preprocessing
from ..precision.halve import halve_engine
from ..precision.quantise import PACKAGES, quantise_engine
from ..version import __version__
from .agreement import Agreement, check_agreement, run_network, size_text
from .detectors import replace_deformable_sampling
from .engine_files import write_engine
from .networks import Preprocess, network_of
from .onnx_graph import check_graph, count_convolutions, tidy, to_onnx, without_threshold
from .pooling import replace_adaptive_pooling
from .suppression import THRESHOLD
from .target import Target, check_exporter

TRACED = (2, 288, 416)  # batch, height and width of the example of a dynamic export: no map of it has a side of 1
OTHER = (13, 27)  # by which the second size differs on which a dynamic engine is compared
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A checked graph and what its engine has to agree with."""

    graph: object  # onnx.ModelProto
    reference: nn.Module  # the same network in PyTorch, as it was before anything was rewritten for export
    inputs: list[Tensor]
    description: Description
    conversion: Conversion | None  # None if the checkpoint was in deploy form


@dataclass(frozen=True)
class Exported:
    """The engine's file and its description, with the worst relative error of each output under `compared`."""

    path: Path
    description: Description
    reference: nn.Module  # what it was compared with in PyTorch
    inputs: list[Tensor]  # and on what
    conversion: Conversion | None  # None if the checkpoint was in deploy form


def export(
    cfg: Config,
    checkpoint: Checkpoint,
    out: str | PathLike,
    target: Target | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = print,
) -> Exported:
    """Write `engine.onnx`, or `engine.xml` and `engine.bin`, and `engine.json` into the folder `out`: all or none.

    Args:
        checkpoint: in training form or deploy form; `cfg` is its config.

    Raises:
        UserError: a package of the extra `export` is missing, the folder is not empty or cannot be written to, the
            checkpoint does not fit, the model cannot be exported, the engine does not agree with PyTorch, or in
            fp16 or int8 it loses more than `target.max_drop`, or for int8 there is no data.
    """
    out, target = Path(out), target or Target()
    _check_export(cfg, out, target, overwrite)

    with atomic_folder(out) as folder:  # entered first: a folder that cannot be written to is no late surprise
        prepared = prepare(cfg, checkpoint, target, progress=progress)
        path, description = write_engine(prepared.graph, prepared.description, folder)

        sizes = ', '.join(size_text(inputs.shape) for inputs in prepared.inputs)
        progress(f'Running the engine on {sizes} and comparing')
        agreement = check_agreement(Engine(path), prepared.reference, prepared.inputs, _before(target.precision))
        if hasattr(prepared.reference, THRESHOLD) and target.precision != 'bf16':
            progress('Comparing once more with a score threshold of 0, so that there are detections')
            agreement = _agreement_without_threshold(prepared, target)
        if agreement.note:
            progress(agreement.note)

        description = write_description(path, replace(
            description, compared=agreement.compared, tolerance=agreement.tolerance,
            computed_in=agreement.computed_in))
        if target.precision == 'int8':
            description = quantise_engine(
                cfg, path, prepared.graph, description,
                calib_images=target.calib_images, max_drop=target.max_drop, progress=progress)
        if target.precision == 'fp16':
            description = _in_half(cfg, path, prepared, description, target, progress)
        progress(f'Writing {out}')

    return Exported(out / path.name, description, prepared.reference, prepared.inputs, prepared.conversion)


def _before(precision: str) -> str:
    """In which an engine is first compared: one in fp16 begins as one in float32."""
    return 'fp32' if precision == 'fp16' else precision


def _in_half(
    cfg: Config, path: Path, prepared: Prepared, description: Description, target: Target, progress: Progress
) -> Description:
    """Replace the float32 engine at `path` by one in float16, and compare that too."""
    images = [one.numpy() for one in prepared.inputs]
    description = halve_engine(
        cfg, path, prepared.graph, description, images, io_dtype=target.io_dtype,
        calib_images=target.calib_images, max_drop=target.max_drop, progress=progress)

    progress('Comparing the engine in fp16')
    agreement = check_agreement(Engine(path), prepared.reference, prepared.inputs, 'fp16')
    return write_description(path, replace(
        description, compared=agreement.compared, tolerance=agreement.tolerance))


def _agreement_without_threshold(prepared: Prepared, target: Target) -> Agreement:
    """Of the same engine but for its score threshold: in random images a trained detector may find nothing."""
    reference = copy.deepcopy(prepared.reference)
    getattr(reference, THRESHOLD).zero_()
    with TemporaryDirectory() as folder:
        path, _ = write_engine(without_threshold(prepared.graph), prepared.description, Path(folder))
        return check_agreement(Engine(path), reference, prepared.inputs, _before(target.precision))


def _check_export(cfg: Config, out: Path, target: Target, overwrite: bool) -> None:
    """UserError for what can be known before the work begins: the folder, the packages, the data of int8."""
    check_exporter()
    check_output_folder(out, overwrite)

    runtime = 'onnxruntime' if target.engine == 'onnx' else 'openvino'
    for module in ('onnx', 'onnxscript', runtime):
        optional(module)
    if target.precision == 'int8':
        optional(PACKAGES[target.engine])
        check_dataset(cfg, 'train')
        check_dataset(cfg, 'val')


def prepare(cfg: Config, checkpoint: Checkpoint, target: Target, *, progress: Progress = print) -> Prepared:
    """Everything of an export up to the checked graph in float32, which quantisation starts from too.

    Raises:
        UserError: as `export`.
    """
    progress(f'Fusing {checkpoint.source}')
    preprocessing = Preprocessing.of_config(cfg)
    model, conversion = load_deploy(cfg, checkpoint, target)
    if target.preprocess and in_channels(model) != 3:
        raise UserError(
            f'--preprocess is for images of 3 channels, and this model takes {in_channels(model)}. '
            'Export it without, and normalise outside.')

    height, width = target.shape or shape_of_tests(cfg, model, target.preprocess)
    if not target.shape and not target.dynamic:
        progress(f'For images of {height}x{width}; --shape H W for others')
    sizes = [(1, height, width)]
    if target.dynamic:
        sizes.append((2, height + OTHER[0], width + OTHER[1]))
    inputs = [_images(model, size, target.preprocess) for size in sizes]
    example = _images(model, TRACED, target.preprocess) if target.dynamic else inputs[0]

    inside = Preprocess(preprocessing) if target.preprocess else None
    reference = network_of(model, inside, nms=target.nms)
    rewritten = replace_deformable_sampling(copy.deepcopy(model))
    rewritten = replace_adaptive_pooling(rewritten)  # norms are folded in the graph, where it can be seen
    network = network_of(rewritten, inside, target.argmax, target.nms)

    outputs = run_network(reference, inputs[0])
    names = network.outputs[:len(outputs)]
    described = describe(cfg, checkpoint, model, target, inputs[0], names)
    if described.task == 'detection':
        described = replace(described, test_cfg=settings_of(model), nms=reference.nms)
        if not reference.clips:
            described = replace(described, clipped=False)
        if reference.nms == 'outside':
            described = _describe_levels(described, reference, inputs[0], outputs[0].shape[1])

    shown = 'any size' if target.dynamic else size_text(inputs[0].shape)
    progress(f'Exporting {described.model} with torch {torch.__version__}, {shown}')
    graph = to_onnx(network, example, names, target.dynamic_axes)
    progress('Checking the graph')
    operators = check_graph(graph, network, count_convolutions(network, example))
    tidy(graph)
    return Prepared(graph, reference, inputs, replace(described, graph=operators), conversion)


def load_deploy(cfg: Config, checkpoint: Checkpoint, target: Target) -> tuple[nn.Module, Conversion | None]:
    """The deploy form of a checkpoint in either form; of a training form the conversion with its proof, too.

    Raises:
        UserError: no engine can be made of such a model, the checkpoint does not fit the config, or converting
            refuses.
    """
    model = build_model(deploy_config(cfg))
    model.eval()
    network_of(model, argmax=target.argmax, nms=target.nms)  # refused before the work of converting
    if checkpoint.form == 'deploy':
        checkpoint.load_into(model, cfg)
        return model, None

    conversion = convert_checkpoint(cfg, checkpoint, target.shape)
    return conversion.deploy, conversion


def shape_of_tests(cfg: Config, model: nn.Module, preprocess: bool) -> tuple[int, int]:
    """Height and width of what an engine is given in a test, before or after preprocessing.

    The window of slide inference, else that of the first validation image, else `shape_of_config`.
    """
    settings = cfg.model.get('test_cfg') or {}
    if settings.get('mode') == 'slide':
        return tuple(settings['crop_size'])

    try:
        sample = validation_set(cfg)[0]
    except Exception:  # no data, or damaged: an engine needs none
        return shape_of_config(cfg)

    if preprocess:
        return tuple(sample['inputs'].shape[1:])
    batch = model.data_preprocessor(pseudo_collate([sample]))
    return tuple(batch['inputs'].shape[2:])


def describe(
    cfg: Config, checkpoint: Checkpoint, model: nn.Module, target: Target, inputs: Tensor, outputs: Sequence[str]
) -> Description:
    """All that is known of an engine before its graph is made."""
    shape = [None if axis in target.dynamic_axes else size for axis, size in enumerate(inputs.shape)]
    dtype, layout = ('uint8', 'NHWC') if target.preprocess else ('float32', 'NCHW')
    preprocessing = asdict(Preprocessing.of_config(cfg))
    versions = dict(repvgg_mm=__version__, torch=str(torch.__version__), mmengine=mmengine.__version__)
    return Description(
        task='segmentation' if is_segmentor(model) else 'detection',
        model=type(model).__name__,
        arch=arch_of_config(cfg),
        classes=checkpoint.dataset_meta.get('classes'),
        palette=checkpoint.dataset_meta.get('palette'),
        source=checkpoint.name,
        source_sha256=checkpoint.sha256,
        versions=versions,
        engine=target.engine,
        precision=target.precision,
        outputs=list(outputs),
        input=Input('image', dtype, layout, shape),
        openvino_properties={},
        preprocessing=InputPreprocessing(**preprocessing, inside=target.preprocess),
        graph={})


def _describe_levels(description: Description, reference: nn.Module, inputs: Tensor, priors: int) -> Description:
    """With what `detections.detect` needs to know; UserError if it could not use the engine."""
    check_settings(description.test_cfg)
    description = replace(description, levels=reference.levels)

    shape = inputs.shape[1:3] if description.preprocessing.inside else inputs.shape[2:]
    sizes = level_sizes(description, shape)
    if sum(sizes) != priors:
        raise UserError(
            f'Levels of a detector have one position for each stride begun, here {sizes} priors, and the '
            f'head gave {priors} in all. Choose a --shape H W that is a multiple of the largest stride; where no size '
            'helps, as with SSD, convert the model and run the deploy form with PyTorch.')
    return description


def _images(model: nn.Module, size: Sequence[int], preprocess: bool) -> Tensor:
    """Random images of (batch, height, width), as the network takes them."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width = size
    if preprocess:
        return torch.randint(256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, in_channels(model), height, width, generator=generator)
