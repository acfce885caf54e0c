"""Both forms of models, engines and rivals side by side: python tools/benchmark.py CONFIG ... --plot FILE.png"""

import sys

if __name__ == '__main__':
    sys.argv[:1] = ['repvgg-mm', 'benchmark']
    from repvgg_mm.__main__ import main
    main()
