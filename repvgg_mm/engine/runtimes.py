"""The libraries that run an engine, one loader each, and the devices that they compute on."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import LONGEST_REASON, UserError
from .description import Description
from .openvino_file import openvino_core
from .packages import optional

Runner = Callable[[np.ndarray], list[np.ndarray]]
DEVICES = dict(onnxruntime=('cpu', 'cuda', 'tensorrt'), openvino=('cpu', 'gpu'), tensorrt=('cuda',))  # default first
PROVIDERS = dict(
    cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider', tensorrt='TensorrtExecutionProvider')  # of ONNX Runtime
NEEDED = dict(cuda='a GPU, CUDA and cuDNN', tensorrt='a GPU, CUDA, cuDNN and TensorRT')
TENSORRT = 'Install it beside CUDA: pip install tensorrt polygraphy'


class Device(NamedTuple):
    """What computes: `kind` is one of the library's `DEVICES`, `index` counts those of a kind."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f'{self.kind}:{self.index}' if self.index else self.kind


class Runtime(NamedTuple):
    """An engine in memory: `run` gives its outputs in the order of the description.

    `computed_in` is the format of floating-point numbers, f32, tf32, f16 or bf16; in int8 of what is not quantised.
    """

    run: Runner
    computed_in: str


def device_of(library: str, name: str | None) -> Device:
    """The device that a user names, such as cpu, cuda or cuda:1; without a name the library's first.

    Raises:
        UserError: the library has no such device.
    """
    kinds = DEVICES[library]
    if name is None:
        return Device(kinds[0])

    found = re.fullmatch(r'([a-z]+)(?::(\d{1,3}))?', name)
    numbered = found is not None and found[2] is not None
    if found is None or found[1] not in kinds or (numbered and found[1] == 'cpu'):
        raise UserError(
            f'{library} runs an engine on {" or ".join(kinds)}, and --device {name} was asked for. Choose one of '
            'these, or leave --device out.')
    return Device(found[1], int(found[2] or 0))


def load_onnxruntime(path: Path, description: Description, device: Device, threads: int | None) -> Runtime:
    """An engine in .onnx, by one of ONNX Runtime's providers.

    ONNX Runtime computes on the CPU where a provider cannot be loaded, without an error: that is refused here.
    """
    onnxruntime = optional('onnxruntime')
    _check_provider(path, description, device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too, and told in a sentence
    options.add_session_config_entry('session.force_spinning_stop', '1')  # its threads would slow what comes next
    if threads:
        options.intra_op_num_threads = threads

    if device.kind != 'cpu':
        onnxruntime.preload_dlls()  # those of pip install 'onnxruntime-gpu[cuda,cudnn]'
    try:
        session = onnxruntime.InferenceSession(path, options, providers=_providers(device), enable_fallback=0)
    except Exception as error:
        if device.kind == 'cpu':
            raise
        raise _not_loaded(path, device, last_line(error)) from None
    if PROVIDERS[device.kind] not in session.get_providers():
        raise _not_loaded(path, device, 'ONNX Runtime fell back to the CPU, and printed the reason above')

    inputs = [part.name for part in session.get_inputs()]
    check_names(path, description, inputs, [part.name for part in session.get_outputs()])
    name = description.input.name

    def run(images: np.ndarray) -> list[np.ndarray]:
        return session.run(description.outputs, {name: images})
    return Runtime(run, _floats(device.kind, description.precision))


def load_openvino(path: Path, description: Description, device: Device, threads: int | None) -> Runtime:
    """An engine in .xml, on a device that OpenVINO finds."""
    core = openvino_core()
    wanted = device.kind.upper()
    if device.index:
        wanted += f'.{device.index}'
    kinds = {name.split('.')[0] for name in core.available_devices}
    if wanted not in {*core.available_devices, *kinds}:
        raise UserError(
            f'OpenVINO runs an engine on a device that it finds, here {", ".join(core.available_devices)}, and '
            f'--device {device} was asked for. Install the driver of that device, or leave --device out.')

    properties = {'PERFORMANCE_HINT': 'LATENCY', **description.openvino_properties}
    if threads and device.kind == 'cpu':
        properties['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(path, wanted, properties)
    inputs, outputs = ([name for part in parts for name in part.names] for parts in (compiled.inputs, compiled.outputs))
    check_names(path, description, inputs, outputs)
    request = compiled.create_infer_request()
    name = description.input.name

    def run(images: np.ndarray) -> list[np.ndarray]:
        request.infer({name: images}, share_inputs=True)
        return [request.get_tensor(output).data.copy() for output in description.outputs]
    return Runtime(run, compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name())


def load_tensorrt(path: Path, description: Description, device: Device, threads: int | None) -> Runtime:
    """A plan that trtexec built of a described engine, by Polygraphy's runner, which needs numpy alone.

    Code for the CPU, which a plan may hold, is not run: `engine_host_code_allowed` stays off.
    """
    if device.index:
        raise UserError(
            f'A plan runs on the first GPU that the process sees, and --device {device} was asked for. Leave it out, '
            f'and set CUDA_VISIBLE_DEVICES={device.index}.')
    tensorrt = optional('tensorrt', TENSORRT)
    polygraphy = optional('polygraphy.backend.trt', TENSORRT)

    try:
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        plan = runtime.deserialize_cuda_engine(path.read_bytes())
        if plan is None:
            raise ValueError('its reason is printed above')
    except Exception as error:
        raise UserError(
            'A plan runs on the kind of GPU and with the version of TensorRT that it was built for, and TensorRT '
            f'{tensorrt.__version__} cannot load {path} here ({last_line(error)}). Build it again here, of the '
            '.onnx file.') from None
    _check_plan(path, description, plan, tensorrt)

    runner = polygraphy.TrtRunner(plan)
    runner.activate()
    name = description.input.name

    def run(images: np.ndarray) -> list[np.ndarray]:
        outputs = runner.infer({name: images})
        return [np.array(outputs[output]) for output in description.outputs]  # copies: the runner writes there again
    weakref.finalize(run, runner.deactivate)
    return Runtime(run, _floats('tensorrt', description.precision))


LOADERS = dict(onnxruntime=load_onnxruntime, openvino=load_openvino, tensorrt=load_tensorrt)


def last_line(error: Exception) -> str:
    """Where the libraries say what is wrong, after the places in their code and a function of ONNX Runtime's."""
    line = str(error).strip().split('\n')[-1]
    return re.sub(r'^.*onnxruntime::.*\) ', '', line)[-LONGEST_REASON:]


def check_names(path: Path, description: Description, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """UserError unless the graph has the input and the outputs that are described."""
    absent = {name for name in description.outputs if name not in outputs} | {description.input.name} - {*inputs}
    if absent:
        raise UserError(
            f'An engine takes the input and gives the outputs of its description, and {path} with {inputs} and '
            f'{outputs} has no {", ".join(sorted(absent))}. Copy all files of the export, or export again.')


def _floats(kind: str, precision: str) -> str:
    """What ONNX Runtime's CPU and CUDA kernels and TensorRT compute floating-point numbers in."""
    if kind == 'cpu':
        return 'f32'
    if precision == 'fp16':
        return 'f16'
    return 'f32' if kind == 'cuda' else 'tf32'  # where the GPU has it


def _check_provider(path: Path, description: Description, device: Device, available: Sequence[str]) -> None:
    """UserError for a provider that is not installed, or that has no integer kernels for an int8 engine."""
    if description.precision == 'int8' and device.kind == 'cuda':
        raise UserError(
            f"ONNX Runtime's CUDA provider has no integer kernels for convolutions, and {path} is in int8. Use "
            '--device tensorrt or cpu, or an engine in fp16.')
    if PROVIDERS[device.kind] not in available:
        raise UserError(
            f'--device {device} is {PROVIDERS[device.kind]} of ONNX Runtime, and this installation has '
            f'{", ".join(available)}. Install it in the place of onnxruntime: pip install '
            '"onnxruntime-gpu[cuda,cudnn]", or leave --device out.')


def _providers(device: Device) -> list:
    """For ONNX Runtime, each with its options: what one cannot compute goes to the next."""
    if device.kind == 'cpu':
        return [PROVIDERS['cpu']]
    index = str(device.index)
    cuda = PROVIDERS['cuda'], dict(device_id=index, use_tf32='0')  # an engine in fp32 computes in float32
    if device.kind == 'cuda':
        return [cuda, PROVIDERS['cpu']]
    return [(PROVIDERS['tensorrt'], dict(device_id=index)), cuda, PROVIDERS['cpu']]


def _not_loaded(path: Path, device: Device, why: str) -> UserError:
    return UserError(
        f'--device {device} needs {NEEDED[device.kind]}, and {PROVIDERS[device.kind]} could not load {path} '
        f'({why}). Install the versions that this onnxruntime-gpu asks for, or leave --device out.')


def _check_plan(path: Path, description: Description, plan: object, tensorrt: object) -> None:
    """UserError unless a TensorRT plan has the described names and takes images of the described type and sizes."""
    names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
    inputs = [name for name in names if plan.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    check_names(path, description, inputs, [name for name in names if name not in inputs])

    wanted = description.input
    dtype = np.dtype(tensorrt.nptype(plan.get_tensor_dtype(wanted.name))).name
    sizes = list(plan.get_tensor_shape(wanted.name))  # -1 where any size is taken
    fits = len(sizes) == len(wanted.shape) and all(map(_allows, wanted.shape, sizes))
    if dtype != wanted.dtype or not fits:
        raise UserError(
            f'A plan is built of the engine that is described beside it, which takes {wanted}, and {path} takes '
            f'{dtype} of {tuple(sizes)}. Build it again of that .onnx file, or put its own description beside it.')


def _allows(described: int | None, size: int) -> bool:
    return described in (None, size)
