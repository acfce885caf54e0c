"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume] [--amp]"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'train']
    from repvgg_mm.__main__ import main
    main()
