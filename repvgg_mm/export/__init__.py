"""An engine in the making: fuse, export, check the graph, run it, compare, write.

Read in this order: `target` (what to export), `networks` (what an engine computes), `pooling` (rewritten for export),
`onnx_graph` (the graph and its check), `engine_files`, `agreement` (with PyTorch), `export` (the whole way). For int8:
`calibration` (training images), `layer_noise` (what quantising does to each convolution), `equalise`, `quantise`
(until the metric is kept).
"""
