"""Evaluate a checkpoint or engine: python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out DIR] [--tta]"""

from repvgg_mm.commands.flags import add_checkpoint, add_launch, load_config, parser_with_config, run_tool
from repvgg_mm.engine.engine import is_engine
from repvgg_mm.engine.evaluate import evaluate
from repvgg_mm.errors import UserError
from repvgg_mm.openmmlab.data import complete_test_set


def main() -> None:
    parser = parser_with_config('Evaluate a segmentor, detector or classifier on its test set.')
    add_checkpoint(parser, engine=True)
    add_launch(parser)
    parser.add_argument('--out', help='folder (masks of a segmentor) or .pkl file for the predictions')
    parser.add_argument('--show', action='store_true', help='show predictions on the screen')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows a picture')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    args = parser.parse_args()
    cfg = load_config(args)
    complete_test_set(cfg)
    if args.show or args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            raise UserError('Pictures are drawn by the visualization hook, which this config does not have. '
                            "Add default_hooks=dict(visualization=dict(type='SegVisualizationHook')).")
        switch = 'enable' if cfg.get('default_scope') == 'mmpretrain' else 'draw'
        cfg.default_hooks.visualization.update(
            {switch: True}, interval=1, show=args.show, wait_time=args.wait_time)
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
    if args.out:
        save_predictions(cfg, args.out)
    if args.tta:
        if is_engine(args.checkpoint):
            raise UserError(f'--tta predicts images of several sizes, flipped too, with a model, and '
                            f'{args.checkpoint} is an engine. Give the checkpoint, or leave --tta out.')
        use_test_time_augmentation(cfg)
    evaluate(cfg, args.checkpoint, trust=args.trust_checkpoint)


def save_predictions(cfg, out: str) -> None:
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    if out.endswith('.pkl'):
        dump = 'mmdet.DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'mmengine.DumpResults'
        cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]
    elif [evaluator.type for evaluator in evaluators] == ['IoUMetric']:
        evaluators[0].update(output_dir=out, keep_results=True)
    else:
        raise UserError(f'A folder receives the masks of IoUMetric, and this config evaluates with '
                        f'{", ".join(evaluator.type for evaluator in evaluators)}. Give --out a name in .pkl.')


def use_test_time_augmentation(cfg) -> None:
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise UserError('--tta needs tta_model and tta_pipeline in the config, and this one lacks '
                        f'{" and ".join(key for key in ("tta_model", "tta_pipeline") if key not in cfg)}. '
                        'Add them or test without --tta.')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


if __name__ == '__main__':
    run_tool(main)
