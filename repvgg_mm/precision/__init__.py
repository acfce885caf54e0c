"""Engines of fewer bits: fp16 and int8, each judged by the metric on the validation set.

Read in this order: `metric` (what an engine is judged by), `calibration` (training images), `graph` (convolutions of an
ONNX graph), `layer_noise` (what quantising does to each of them), `equalise`, `rounding` (of weights), `qdq` (int8 in a
graph), `quantise` (until the metric is kept); `half` (float16 in a graph), `halve`.
"""
