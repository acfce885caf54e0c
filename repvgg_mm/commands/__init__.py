"""What the tools do, one file a command with `main(argv=None)`; `tools/*.py` are shells over these.

Read in this order: `flags` and `screen` (what commands share), `train`, `test`, `convert`, `export`, `predict`,
`benchmark`, `convert_weights`, `make_shapes`, `demo`. Nothing outside this room imports it, or argparse.
"""
