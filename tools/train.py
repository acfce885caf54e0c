"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume] [--amp]"""

from repvgg_mm.commands.flags import add_launch, add_trust, load_config, parser_with_config, run_tool
from repvgg_mm.openmmlab.amp import use_amp
from repvgg_mm.openmmlab.resume import resume_from, resume_latest
from repvgg_mm.openmmlab.runner import build_runner


def main() -> None:
    parser = parser_with_config('Train a segmentor or detector.')
    add_launch(parser)
    add_trust(parser)
    parser.add_argument('--resume', action='store_true', help='go on from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--amp-dtype', choices=['float16', 'bfloat16'], help='mixed precision in this type')
    args = parser.parse_args()
    cfg = load_config(args)
    if args.resume:
        print(f'Resuming from {resume_latest(cfg, trust=args.trust_checkpoint)}')
    elif cfg.get('resume') and cfg.get('load_from'):
        resume_from(cfg, cfg.load_from, trust=args.trust_checkpoint)
    if args.amp or args.amp_dtype:
        use_amp(cfg.optim_wrapper, args.amp_dtype)
    build_runner(cfg, 'train', 'val').train()


if __name__ == '__main__':
    run_tool(main)
