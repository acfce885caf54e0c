"""Export a trained segmentor or detector as an engine: python tools/export.py CONFIG CHECKPOINT --out DIR"""

from repvgg_mm.commands.export import main
from repvgg_mm.commands.flags import run_tool

if __name__ == '__main__':
    run_tool(main)
