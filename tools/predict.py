"""Draw what a model predicts: python tools/predict.py CONFIG CHECKPOINT_OR_ENGINE IMAGES ... --out DIR"""

from repvgg_mm.commands.flags import run_tool
from repvgg_mm.commands.predict import main

if __name__ == '__main__':
    run_tool(main)
