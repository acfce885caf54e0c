"""What the commands do, one file a command with `run(args)`; `repvgg_mm/__main__.py` chooses, `tools/*.py` call that.

Read in this order: `arguments` (every command and its flags, without torch), `setup` and `screen` (what commands
share), `train`, `test`, `convert`, `export`, `predict`, `benchmark`, `convert_weights`, `make_shapes`, `demo`. Nothing
outside this room imports it, or argparse.
"""
