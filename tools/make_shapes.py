"""Write the generated dataset of the demo: python tools/make_shapes.py data/shapes"""

import argparse

from repvgg_mm.shapes import make_shapes

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', help='folder to write to')
    parser.add_argument('--train', type=int, default=800, help='training images')
    parser.add_argument('--val', type=int, default=80, help='validation images')
    parser.add_argument('--size', type=int, default=96, help='side in pixels')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    print(make_shapes(args.root, args.train, args.val, args.size, args.seed))
