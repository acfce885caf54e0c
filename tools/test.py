"""Evaluate a checkpoint or engine: python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out DIR] [--tta]"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'test']
    from repvgg_mm.__main__ import main
    main()
