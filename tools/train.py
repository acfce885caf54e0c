"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume] [--amp]"""

from repvgg_mm.commands.flags import run_tool
from repvgg_mm.commands.train import main

if __name__ == '__main__':
    run_tool(main)
