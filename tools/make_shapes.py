"""Write the generated dataset of the demo: python tools/make_shapes.py data/shapes [--classification]"""

from repvgg_mm.commands.flags import run_tool
from repvgg_mm.commands.make_shapes import main

if __name__ == '__main__':
    run_tool(main)
