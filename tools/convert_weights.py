"""Rename or fuse weights of a bare backbone: python tools/convert_weights.py SRC DST -a RepVGG-A0 [--to official]"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'convert-weights']
    from repvgg_mm.__main__ import main
    main()
