"""From nothing to a verified deploy segmentor and detector: python tools/demo.py"""

from repvgg_mm.commands.demo import main
from repvgg_mm.commands.flags import run_tool

if __name__ == '__main__':
    run_tool(main)
