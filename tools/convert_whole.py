"""Convert a trained segmentor or detector: python tools/convert_whole.py CONFIG CHECKPOINT --out DIR"""

import shlex
from pathlib import Path

from repvgg_mm.commands.flags import add_checkpoint, add_report, load_config, parser_with_config, run_tool
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.deploy.conversion import convert_checkpoint, write_deploy
from repvgg_mm.deploy.costs import costs_table, measure_costs
from repvgg_mm.files.atomic import check_output_file, check_output_folder
from repvgg_mm.report.page import write_page


def main() -> None:
    parser = parser_with_config('Fuse every RepVGG block of a trained model, prove it, write checkpoint and config.')
    add_checkpoint(parser)
    parser.add_argument('--out', required=True, help='folder for deploy.pth and deploy.py')
    parser.add_argument('--format', choices=['pth', 'safetensors'], default='pth', help='of the weights')
    parser.add_argument('--overwrite', action='store_true', help='write into a folder that is not empty')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'),
                        help='size of the input on which both forms are compared; from the config by default')
    add_report(parser)
    args = parser.parse_args()
    out = Path(args.out)
    check_output_folder(out, args.overwrite)
    check_output_file('--report', args.report, '.html', '.htm')
    cfg = load_config(args)
    checkpoint = Checkpoint.read(args.checkpoint, trust=args.trust_checkpoint)
    conversion = convert_checkpoint(cfg, checkpoint, args.shape)
    costs = measure_costs(conversion)
    print(costs_table(conversion, costs))
    weights = write_deploy(conversion, out, args.format)
    config = out / 'deploy.py'
    command = shlex.join(['python', 'tools/test.py', str(config), str(weights)])
    print(f'Wrote {weights} and {config}. Next:\n  {command}')
    if args.report:
        from repvgg_mm.report.pages import conversion_page
        write_page(args.report, conversion_page(conversion, costs, cfg, Path(args.config).name))
        print(f'Report: {args.report}')


if __name__ == '__main__':
    run_tool(main)
