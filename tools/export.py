"""Export a trained segmentor or detector as an engine: python tools/export.py CONFIG CHECKPOINT --out DIR"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'export']
    from repvgg_mm.__main__ import main
    main()
