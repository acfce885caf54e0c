"""Rename or fuse weights of a bare backbone: python tools/convert_weights.py SRC DST -a RepVGG-A0 [--to official]"""

from repvgg_mm.commands.convert_weights import main
from repvgg_mm.commands.flags import run_tool

if __name__ == '__main__':
    run_tool(main)
