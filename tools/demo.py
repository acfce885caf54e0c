"""From nothing to a verified deploy segmentor and detector: python tools/demo.py"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'demo']
    from repvgg_mm.__main__ import main
    main()
