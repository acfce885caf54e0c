"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume] [--amp]"""

import torch

from repvgg_mm.cli import add_launch, add_trust, load_config, parser_with_config, run_tool
from repvgg_mm.errors import UserError
from repvgg_mm.runner import build_runner, resume_from, resume_latest


def main() -> None:
    parser = parser_with_config('Train a segmentor or detector.')
    add_launch(parser)
    add_trust(parser)
    parser.add_argument('--resume', action='store_true', help='go on from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    args = parser.parse_args()
    cfg = load_config(args)
    if args.resume:
        print(f'Resuming from {resume_latest(cfg, trust=args.trust_checkpoint)}')
    elif cfg.get('resume') and cfg.get('load_from'):
        resume_from(cfg, cfg.load_from, trust=args.trust_checkpoint)
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a GPU: mmengine's AmpOptimWrapper does not run on a CPU. Train without it.")
        if cfg.optim_wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise UserError(f'--amp works with OptimWrapper, and this config has {cfg.optim_wrapper.type}. '
                            'Set optim_wrapper.type in the config instead.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    build_runner(cfg, 'train', 'val').train()


if __name__ == '__main__':
    run_tool(main)
