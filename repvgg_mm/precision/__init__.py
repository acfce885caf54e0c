"""Engines of fewer bits: fp16 and int8, each judged by the metric on the validation set.

Read in this order: `metric` (what an engine is judged by), `calibration` (training images), `layer_noise` (what
quantising does to each convolution), `equalise`, `quantise` (until the metric is kept).
"""
