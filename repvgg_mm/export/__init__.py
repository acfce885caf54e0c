"""An engine in the making: fuse, export, check the graph, run it, compare, write.

Read in this order: `target` (what to export), `suppression` and `roi_align` (in a graph of fixed sizes), `detectors`,
`two_stage` and `networks` (what an engine computes), `pooling` (rewritten for export), `onnx_graph` (the graph and its
check), `engine_files`, `agreement` (with PyTorch), `export` (the whole way, in fewer bits by the room `precision`),
`tensorrt` (commands for a GPU's machine).
"""
