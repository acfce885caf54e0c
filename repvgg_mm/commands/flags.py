"""What the tools share: their flags, how they read a config, and how they report a mistake."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config, DictAction

from ..errors import UserError
from ..files.checkpoint import use_safe_reader
from ..openmmlab.config import import_toolbox, read_config


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function; a UserError becomes one message on stderr and exit code 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


class ConfigOptions(DictAction):
    """mmengine's `--cfg-options`, which answers a value it cannot read with a UserError."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError):
            # mmengine's parser recurses for ever on a value such as [dict(a=1)].
            raise UserError(
                f'--cfg-options takes KEY=VALUE with numbers, words or lists such as key="[a,b]", got {values}. '
                'Write anything else, such as a list of dicts, into a config with _base_.') from None


def parser_with_config(description: str) -> argparse.ArgumentParser:
    """A parser of a config and --cfg-options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    add_verbose(parser)
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='override settings of the config, for example model.backbone.init_cfg=None; '
             'lists as key="[a,b]" without white space')
    return parser


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """--verbose."""
    parser.add_argument(
        '--verbose', action='store_true', help='show all that is logged, printed and warned of, by other packages too')


def add_checkpoint(parser: argparse.ArgumentParser, *, engine: bool = False) -> None:
    """The checkpoint, or engine, and --trust-checkpoint."""
    kinds = 'checkpoint file'
    if engine:
        kinds += ', or engine (.onnx, .xml) that tools/export.py wrote'
    parser.add_argument('checkpoint', help=kinds)
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """--trust-checkpoint."""
    parser.add_argument(
        '--trust-checkpoint', action='store_true',
        help='unpickle whatever a checkpoint contains; it can then run any code')


def add_report(parser: argparse.ArgumentParser) -> None:
    """--report."""
    parser.add_argument('--report', type=Path, metavar='FILE.html', help='write what was found as one page')


def add_launch(parser: argparse.ArgumentParser) -> None:
    """--work-dir and what launchers pass."""
    parser.add_argument('--work-dir', help='folder for logs and results; work_dirs/CONFIG_NAME by default')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='how several processes were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def load_config(args: argparse.Namespace) -> Config:
    """The config named on the command line, with --cfg-options, --launcher and --work-dir applied.

    Raises:
        UserError: there is no such file or it is not a config.
    """
    cfg = read_config(args.config, args.cfg_options)
    import_toolbox(cfg)
    use_safe_reader(trust=getattr(args, 'trust_checkpoint', False))
    if 'launcher' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        cfg.launcher = args.launcher
        default = Path('work_dirs') / Path(args.config).stem
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(default)
        if Path(cfg.work_dir).is_file():
            raise UserError(f'--work-dir is a folder, and {cfg.work_dir} is a file. Choose another name.')
    return cfg
