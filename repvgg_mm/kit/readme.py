"""The page of a kit: what is in it, and the commands of the tools that take an engine in ONNX."""

from __future__ import annotations

from ..engine.description import Description
from ..export.tensorrt import tensorrt_commands

PAGE = '''# {model}, {precision}, as ONNX

`engine.onnx` (opset {opset}) takes {input} named `{input_name}` and gives {outputs}. It was made of `{source}`.
`engine.json` says the rest: preprocessing, classes, errors against PyTorch.

| | |
|---|---|
| `calibration/` | {calibration} inputs of training pictures as npy; `names.txt` names the pictures |
| `expected/` | {expected} inputs, and the outputs that ONNX Runtime {onnxruntime} gave for them on a CPU |
| `check.py` | compares outputs of a device with the expected ones; needs numpy alone |

Save the outputs of your device as `0_NAME.npy`, `1_NAME.npy` and so on, as in `expected/`, and run
`python check.py FOLDER`. It says whether they agree, how far off they are and how far they may be; with
`python check.py FOLDER 0.05` that is 0.05. A wrong weight shows least in label maps, in detections and in int8, where
libraries round differently.

Each tool below is marked: *run* (by the tests of the exporter), or *not run* (written by the tool's documentation).
Tools that quantise by themselves (RKNN, Hailo, Qualcomm) want a float32 engine: export with `--precision fp32`.
Detections inside (`--nms`) and uint8 images (`--preprocess`) are more than some of them take: leave these flags out
where a tool refuses the graph.

## ONNX Runtime (run)

```
pip install numpy onnxruntime
python check.py
```

## OpenVINO (run)

```python
import os
import numpy as np
import openvino

network = openvino.Core().compile_model('engine.onnx', 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})
os.makedirs('outputs', exist_ok=True)
for i in range({expected}):
    outputs = network(np.load(f'expected/{{i}}_{input_name}.npy'))
    for name in {names}:
        np.save(f'outputs/{{i}}_{{name}}.npy', outputs[name])
```

Then `python check.py outputs`.

## TensorRT 10.12 and newer (not run)

```
{tensorrt}
```

## RKNN-Toolkit2 (not run)

```python
from glob import glob
from rknn.api import RKNN

with open('dataset.txt', 'w') as file:
    file.write('\\n'.join(sorted(glob('calibration/*.npy'))))
rknn = RKNN()
rknn.config(target_platform='rk3588')
rknn.load_onnx(model='engine.onnx')
rknn.build(do_quantization=True, dataset='dataset.txt')
rknn.export_rknn('engine.rknn')
```

## Hailo Dataflow Compiler (not run)

Its calibration set is one array (N, H, W, 3): {hailo}

```
hailo parser onnx engine.onnx --hw-arch hailo8
hailo optimize engine.har --hw-arch hailo8 --calib-set-path calibration.npy --output-har-path optimized.har
hailo compiler optimized.har --hw-arch hailo8
```

## Qualcomm AI Runtime (not run)

```
python -c "import glob, numpy; [numpy.load(f).tofile(f + '.raw') for f in glob.glob('calibration/*.npy')]"
ls calibration/*.raw > inputs.txt
qairt-converter --input_network engine.onnx --output_path engine.dlc
qairt-quantizer --input_dlc engine.dlc --input_list inputs.txt --output_dlc quantised.dlc
```

## Qualcomm AI Hub (not run)

```python
from glob import glob
import numpy as np
import qai_hub as hub

images = [np.load(file) for file in sorted(glob('calibration/*.npy'))]
eight_bits = hub.QuantizeDtype.INT8
job = hub.submit_quantize_job(
    'engine.onnx', calibration_data={{'{input_name}': images}}, weights_dtype=eight_bits, activations_dtype=eight_bits)
hub.submit_compile_job(job.get_target_model(), device=hub.Device('Samsung Galaxy S24 (Family)'))
```
'''
STACK = (
    'python -c "import glob, numpy; numpy.save(\'calibration.npy\', numpy.concatenate('
    '[numpy.load(f){turned} for f in sorted(glob.glob(\'calibration/*.npy\'))]))"')
TURNED = dict(NCHW='.transpose(0, 2, 3, 1)', NHWC='')


def readme(description: Description, *, opset: int, onnxruntime: str, calibration: int, expected: int) -> str:
    """The text of README.md. `calibration` and `expected` are numbers of inputs."""
    return PAGE.format(
        model=description.model,
        precision=description.precision,
        opset=opset,
        input=description.input,
        input_name=description.input.name,
        outputs=', '.join(f'`{name}`' for name in description.outputs),
        names=description.outputs,
        source=description.source,
        calibration=calibration,
        expected=expected,
        onnxruntime=onnxruntime,
        tensorrt=tensorrt_commands(description),
        hailo=f'`{STACK.format(turned=TURNED[description.input.layout])}`')
