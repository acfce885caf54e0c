"""From a trained checkpoint to an engine: fuse, export, check the graph, run it, compare, write."""

from __future__ import annotations

import copy
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import mmengine
import numpy as np
import torch
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ..convert.compare import relative_error
from ..convert.weights import load_strictly
from ..deploy.checkpoint import Checkpoint
from ..deploy.config import deploy_config
from ..deploy.conversion import convert_checkpoint, in_channels
from ..engine.description import save_openvino, write_meta
from ..engine.detections import check_settings, level_sizes
from ..engine.engine import Engine, optional
from ..errors import UserError
from ..files.atomic import atomic_folder, check_output_folder
from ..openmmlab.data import check_dataset, validation_set
from ..openmmlab.model import arch_of_config, build_model, check_size, decode_head_of, shape_of_config
from ..openmmlab.preprocessing import Preprocessing
from ..version import __version__
from .networks import Preprocess, network_of
from .onnx_graph import check_graph, count_convolutions, tidy, to_onnx
from .pooling import replace_adaptive_pooling
from .quantise import quantise_engine

ENGINES = ('onnx', 'openvino')
PRECISIONS = ('fp32', 'bf16', 'int8')
TOLERANCES = dict(fp32=1e-4, bf16=0.1, int8=1e-4)  # worst relative error of an output; in int8 before quantising
STEM = 'engine'
TRACED = (2, 288, 416)  # batch, height and width of the example of a dynamic export: no map of it has a side of 1
OTHER = (13, 27)  # by which the second size differs on which a dynamic engine is compared
FLOAT32 = dict(INFERENCE_PRECISION_HINT='f32')  # in int8 of what is not quantised
PROPERTIES = dict(fp32=FLOAT32, bf16=dict(INFERENCE_PRECISION_HINT='bf16'), int8=FLOAT32)
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What to export: see the flags of tools/export.py.

    Raises:
        UserError: values that do not go together, or a size without a pixel.
    """

    engine: str = 'onnx'
    precision: str = 'fp32'
    shape: Sequence[int] | None = None
    dynamic: bool = False
    argmax: bool = False
    preprocess: bool = False
    calib_images: int = 100  # and max_drop: of int8
    max_drop: float = 0.3    # points of mIoU, or of mAP x 100

    def __post_init__(self) -> None:
        if self.engine not in ENGINES or self.precision not in PRECISIONS:
            raise UserError(f'Engines are {", ".join(ENGINES)} in {", ".join(PRECISIONS)}, got {self.engine} in '
                            f'{self.precision}. Choose one of each.')
        if (self.engine, self.precision) == ('onnx', 'bf16'):
            raise UserError("ONNX Runtime's CPU kernels compute convolutions in float32, and --precision bf16 was "
                            'asked for. Use --engine openvino, or leave --precision out.')
        if (self.engine, self.precision) == ('onnx', 'int8'):
            raise UserError('Engines in int8 are quantised by NNCF for OpenVINO, and --engine onnx was asked for. '
                            'Use --engine openvino; TensorRT quantises the float32 engine.onnx itself.')
        if self.calib_images < 1:
            raise UserError('Quantising measures ranges on training images, and --calib-images '
                            f'{self.calib_images} leaves none. Choose 1 or more.')
        if not math.isfinite(self.max_drop):
            raise UserError(f'--max-drop is a number of points, such as 0.3, got {self.max_drop}. Choose one.')
        if self.shape is not None:
            check_size(self.shape)


@dataclass
class Prepared:
    """A checked graph and what its engine has to agree with."""

    model: object  # onnx.ModelProto
    reference: nn.Module  # the same network in PyTorch, as it was before anything was rewritten for export
    inputs: list[Tensor]
    meta: dict


@dataclass
class Exported:
    """The engine's file and its description, with the worst relative error of each output under `compared`."""

    path: Path
    meta: dict
    reference: nn.Module  # what it was compared with in PyTorch
    inputs: list[Tensor]  # and on what


def export(
    cfg: Config, checkpoint_path: str | PathLike, out: str | PathLike, target: Target | None = None, *,
    overwrite: bool = False, trust: bool = False, progress: Progress = print,
) -> Exported:
    """Write `engine.onnx`, or `engine.xml` and `engine.bin`, and `engine.json` into the folder `out`: all or none.

    Args:
        checkpoint_path: in training form or deploy form; `cfg` is its config.

    Raises:
        UserError: a package of the extra `export` is missing, the folder is not empty or cannot be written to, the
            checkpoint does not fit, the model cannot be exported, the engine does not agree with PyTorch, or in
            int8 it loses more than `target.max_drop` or there is no data.
    """
    out, target = Path(out), target or Target()
    check_output_folder(out, overwrite)
    for module in ('onnx', 'onnxscript', 'onnxruntime' if target.engine == 'onnx' else 'openvino'):
        optional(module)
    if target.precision == 'int8':
        optional('nncf')
        for split in ('train', 'val'):
            check_dataset(cfg, split)
    with atomic_folder(out) as folder:  # entered first: a folder that cannot be written to is no late surprise
        prepared = prepare(cfg, checkpoint_path, target, trust=trust, progress=progress)
        path = write_engine(prepared, folder, target)
        progress(f'Running the engine on {", ".join(_size(inputs) for inputs in prepared.inputs)} and comparing')
        engine = Engine(path)
        prepared.meta['compared'] = [
            dict(shape=list(inputs.shape), errors=compare_engine(engine, prepared.reference, inputs))
            for inputs in prepared.inputs]
        _check_errors(prepared.meta)
        prepared.meta['computed_in'] = engine.computed_in
        write_meta(path, prepared.meta)
        if target.precision == 'int8':
            quantise_engine(cfg, path, prepared.model.SerializeToString(), prepared.meta, progress=progress,
                            calib_images=target.calib_images, max_drop=target.max_drop)
        progress(f'Writing {out}')
    return Exported(out / path.name, prepared.meta, prepared.reference, prepared.inputs)


def prepare(
    cfg: Config, checkpoint_path: str | PathLike, target: Target, *, trust: bool = False, progress: Progress = print
) -> Prepared:
    """Everything of an export up to the checked graph in float32, which quantisation starts from too.

    Raises:
        UserError: as `export`.
    """
    progress(f'Fusing {checkpoint_path}')
    preprocessing = Preprocessing.of_config(cfg)
    model, meta = load_deploy(cfg, checkpoint_path, target, trust=trust)
    if target.preprocess and in_channels(model) != 3:
        raise UserError(f'--preprocess is for images of 3 channels, and this model takes {in_channels(model)}. '
                        'Export it without, and normalise outside.')
    height, width = target.shape or shape_of_tests(cfg, model, target.preprocess)
    if not target.shape and not target.dynamic:
        progress(f'For images of {height}x{width}; --shape H W for others')

    def network(model: nn.Module, argmax: bool) -> nn.Module:
        return network_of(model, Preprocess(preprocessing) if target.preprocess else None, argmax)

    reference = network(model, argmax=False)
    exported = network(replace_adaptive_pooling(fuse_conv_bn(copy.deepcopy(model))), target.argmax)
    sizes = [(1, height, width)] + ([(2, height + OTHER[0], width + OTHER[1])] if target.dynamic else [])
    inputs = [_images(model, size, target.preprocess) for size in sizes]
    example = _images(model, TRACED, target.preprocess) if target.dynamic else inputs[0]
    outputs = _run(reference, inputs[0])
    names = exported.outputs[:len(outputs)]
    meta |= dict(
        engine=target.engine, precision=target.precision, outputs=list(names),
        input=_describe_input(inputs[0], target), openvino_properties={},
        preprocessing=dict(asdict(preprocessing), inside=target.preprocess))
    if meta['task'] == 'detection':
        meta |= _detector_meta(reference, meta, inputs[0], outputs[0].shape[1])

    progress(f'Exporting {meta["model"]} with torch {torch.__version__}, '
             f'{"any size" if target.dynamic else _size(inputs[0])}')
    graph = to_onnx(exported, example, names, _dynamic_axes(target))
    progress('Checking the graph')
    meta['graph'] = check_graph(graph, exported, count_convolutions(exported, example))
    tidy(graph)
    return Prepared(graph, reference, inputs, meta)


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
    images = sample['inputs'][None] if preprocess else model.data_preprocessor(pseudo_collate([sample]))['inputs']
    return tuple(images.shape[2:])


def load_deploy(
    cfg: Config, checkpoint_path: str | PathLike, target: Target, *, trust: bool = False
) -> tuple[nn.Module, dict]:
    """The deploy form of a checkpoint in either form, a training form with its proof; and what is known of it.

    Raises:
        UserError: no engine can be made of such a model, the checkpoint does not fit the config, or converting
            refuses.
    """
    checkpoint = Checkpoint.read(checkpoint_path, trust=trust)
    model = build_model(deploy_config(cfg)).eval()
    network_of(model, argmax=target.argmax)
    if checkpoint.form == 'deploy':
        load_strictly(model, checkpoint.content, checkpoint.source)
    else:
        model = convert_checkpoint(cfg, checkpoint, target.shape).deploy
    known = checkpoint.dataset_meta
    return model, dict(
        task='segmentation' if hasattr(model, 'encode_decode') else 'detection',
        model=type(model).__name__, arch=arch_of_config(cfg),
        classes=known.get('classes'), palette=known.get('palette'),
        source=checkpoint.name, source_sha256=checkpoint.sha256,
        versions=dict(repvgg_mm=__version__, torch=str(torch.__version__), mmengine=mmengine.__version__))


def write_engine(prepared: Prepared, folder: Path, target: Target) -> Path:
    """Write the engine of a prepared graph and its description into `folder`; returns the engine's path."""
    meta = prepared.meta
    meta['versions']['onnx'] = optional('onnx').__version__
    content = prepared.model.SerializeToString()
    if target.engine == 'onnx':
        path = folder / f'{STEM}.onnx'
        path.write_bytes(content)
    else:
        openvino = optional('openvino')
        meta['versions']['openvino'] = openvino.__version__
        meta['openvino_properties'] = PROPERTIES[target.precision]
        path = folder / f'{STEM}.xml'
        try:
            network = openvino.Core().read_model(content)
        except RuntimeError as error:
            raise UserError(f'OpenVINO reads the exported graph, and cannot ({str(error).strip().splitlines()[-1]}). '
                            'Export with --engine onnx.') from None
        save_openvino(network, path)
    write_meta(path, meta)
    return path


@torch.no_grad()
def compare_engine(engine: Engine, reference: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Worst relative error of each output of `engine` on `inputs`, against the network `reference` in PyTorch.

    Of a label map it is the most that a chosen class's logit lies below the largest, relative to the
    largest logit of all: two classes that are equal in float32 may be chosen either way.

    Raises:
        UserError: an output has another shape.
    """
    found, expected = engine(inputs.numpy()), _run(reference, inputs)
    if 'labels' in found:
        labels, logits = torch.from_numpy(found['labels'].astype(np.int64)), expected[0]
        if logits.shape[1] == 1:
            margin = logits[:, 0] - torch.logit(torch.tensor(decode_head_of(reference.model).threshold))
            logits = torch.stack([torch.zeros_like(margin), margin], 1)
        expected, found = [logits.amax(1)], dict(labels=logits.gather(1, labels[:, None])[:, 0].numpy())
    shapes = [tuple(tensor.shape) for tensor in expected], [array.shape for array in found.values()]
    if shapes[0] != shapes[1]:
        raise UserError(f'An engine gives what PyTorch gives, and for an input of {tuple(inputs.shape)} its outputs '
                        f'have the shapes {shapes[1]} instead of {shapes[0]}. Nothing was written: export without '
                        '--dynamic.')
    return {name: relative_error(tensor, torch.from_numpy(found[name])) for name, tensor in zip(found, expected)}


def trtexec(meta: dict, name: str = f'{STEM}.onnx') -> str:
    """The commands that make a TensorRT engine of an ONNX engine and compare the two, for a machine with a GPU."""
    wanted, name = meta['input'], shlex.quote(name)
    shapes = ''
    if None in wanted['shape']:
        traced = meta['compared'][0]['shape']
        sizes = {'min': [1, *traced[1:]], 'opt': traced, 'max': [4, *traced[1:]]}
        shapes = ''.join(f' --{kind}Shapes={wanted["name"]}:{"x".join(map(str, size))}' for kind, size in sizes.items())
    return (f'trtexec --onnx={name} --saveEngine={STEM}.plan --fp16{shapes}\n'
            f'polygraphy run {name} --trt --fp16 --onnxrt --rtol 1e-2 --atol 1e-2')


def _run(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'The model runs on an input of {_size(inputs)} before it is exported, and cannot take it: '
                        f'{str(error).splitlines()[0]}. Choose another with --shape H W.') from None
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _images(model: nn.Module, size: Sequence[int], preprocess: bool) -> Tensor:
    """Random images of (batch, height, width), as the network takes them."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width = size
    if preprocess:
        return torch.randint(256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, in_channels(model), height, width, generator=generator)


def _size(inputs: Tensor) -> str:
    return 'x'.join(map(str, inputs.shape))


def _dynamic_axes(target: Target) -> tuple[int, ...]:
    """Batch, height and width."""
    if not target.dynamic:
        return ()
    return (0, 1, 2) if target.preprocess else (0, 2, 3)


def _describe_input(inputs: Tensor, target: Target) -> dict:
    shape = [None if axis in _dynamic_axes(target) else size for axis, size in enumerate(inputs.shape)]
    return dict(name='image', dtype='uint8' if target.preprocess else 'float32',
                layout='NHWC' if target.preprocess else 'NCHW', shape=shape)


def _detector_meta(reference: nn.Module, meta: dict, inputs: Tensor, priors: int) -> dict:
    """What `detections.detect` needs to know; UserError if it could not use the engine."""
    settings = {**reference.model.bbox_head.test_cfg}
    check_settings(settings)
    found = dict(levels=reference.levels, test_cfg=settings, nms='outside')
    shape = inputs.shape[1:3] if meta['preprocessing']['inside'] else inputs.shape[2:]
    sizes = level_sizes({**meta, **found}, shape)
    if sum(sizes) != priors:
        raise UserError(f'Levels of a detector have one position for each stride begun, here {sizes} priors, and the '
                        f'head gave {priors} in all. Choose a --shape H W that is a multiple of the largest stride.')
    return found


def _check_errors(meta: dict) -> None:
    tolerance = TOLERANCES[meta['precision']]
    for comparison in meta['compared']:
        for name, error in comparison['errors'].items():
            if not error <= tolerance:
                raise UserError(
                    f'An engine in {meta["precision"]} must agree with PyTorch to {tolerance:g} relative, and {name} '
                    f'differs by {error:.1e} on an input of {"x".join(map(str, comparison["shape"]))}. Nothing was '
                    'written: try the other --engine, or look for values beyond float32.')
    meta['tolerance'] = tolerance
