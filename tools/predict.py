"""Draw what a model predicts: python tools/predict.py CONFIG CHECKPOINT_OR_ENGINE IMAGES ... --out DIR"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'predict']
    from repvgg_mm.__main__ import main
    main()
