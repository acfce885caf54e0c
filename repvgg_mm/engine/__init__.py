"""An exported engine in use.

`Engine` runs `engine.onnx`, `engine.xml` or `engine.plan`, `detect` turns a detector engine's outputs into boxes; both
need numpy and the library that runs the engine, nothing else. Read in this order: `onnx_file` (which files a graph is
in), `description` (what `engine.json` holds), `packages` (optional ones), `openvino_file` (OpenVINO's one Core, and its
networks), `runtimes` (a loader for each library, and devices), `engine`, `detections`; then, with MMEngine, `model` (an
engine in the place of a toolbox's model) and `evaluate` (its metric).
"""

from .description import Description, read_description
from .detections import Detections, detect
from .engine import Engine

__all__ = ['Description', 'Detections', 'Engine', 'detect', 'read_description']
