"""Both forms of models, engines and rivals side by side: python tools/benchmark.py CONFIG ... --plot FILE.png"""

from repvgg_mm.commands.benchmark import main
from repvgg_mm.commands.flags import run_tool

if __name__ == '__main__':
    run_tool(main)
