"""Draw what a model predicts: python tools/predict.py CONFIG CHECKPOINT_OR_ENGINE IMAGES ... --out DIR"""

from repvgg_mm.commands.flags import add_checkpoint, load_config, parser_with_config, run_tool
from repvgg_mm.inference.prediction import predict_files


def main() -> None:
    parser = parser_with_config('Draw predictions of images and videos: classes with a legend, or boxes and masks.')
    add_checkpoint(parser, engine=True)
    parser.add_argument('images', nargs='+', help="images, videos, folders of them, quoted patterns such as 'a/*.jpg'")
    parser.add_argument('--out', required=True,
                        help='folder for the pictures (.png) and videos (.mp4), in folders like those of the sources')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw detections from this score on')
    parser.add_argument('--device', help='cuda by default if there is a GPU, else cpu')
    parser.add_argument('--overwrite', action='store_true', help='replace pictures that exist')
    args = parser.parse_args()
    written = predict_files(load_config(args), args.checkpoint, args.images, args.out, score_thr=args.score_thr,
                            device=args.device, overwrite=args.overwrite, trust=args.trust_checkpoint)
    print(f'Drew {len(written)} in {args.out}, such as {written[0]}')


if __name__ == '__main__':
    run_tool(main)
