"""Write the generated dataset of the demo: python tools/make_shapes.py data/shapes [--classification]"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'make-shapes']
    from repvgg_mm.__main__ import main
    main()
