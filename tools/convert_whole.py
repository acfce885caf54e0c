"""Convert a trained segmentor or detector: python tools/convert_whole.py CONFIG CHECKPOINT --out DIR"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'convert']
    from repvgg_mm.__main__ import main
    main()
