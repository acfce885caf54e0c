"""Convert a trained segmentor or detector: python tools/convert_whole.py CONFIG CHECKPOINT --out DIR"""

from repvgg_mm.commands.convert import main
from repvgg_mm.commands.flags import run_tool

if __name__ == '__main__':
    run_tool(main)
