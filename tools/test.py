"""Evaluate a checkpoint or engine: python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out DIR] [--tta]"""

from repvgg_mm.commands.flags import run_tool
from repvgg_mm.commands.test import main

if __name__ == '__main__':
    run_tool(main)
