"""What a command starts with: the config as the command line changes it, and its toolbox."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from ..errors import UserError
from ..files.checkpoint import use_safe_reader
from ..openmmlab.config import import_toolbox, read_config
from ..training.launchers import check_alone


def load_config(args: argparse.Namespace) -> Config:
    """The config named on the command line, with --cfg-options, --launcher and --work-dir applied.

    Raises:
        UserError: there is no such file, it is not a config, an option of --cfg-options is none, or several processes
            were started without --launcher.
    """
    cfg = read_config(args.config, parse_options(args.cfg_options))
    import_toolbox(cfg)
    use_safe_reader(trust=getattr(args, 'trust_checkpoint', False))
    if 'launcher' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        if args.launcher is None:
            check_alone()
        cfg.launcher = args.launcher or 'none'
        default = Path('work_dirs') / Path(args.config).stem
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(default)
        if Path(cfg.work_dir).is_file():
            raise UserError(f'--work-dir is a folder, and {cfg.work_dir} is a file. Choose another name.')
    return cfg


def check_latency_seconds(seconds: float) -> None:
    """Raises UserError: --latency-seconds is no time."""
    if not seconds >= 0:
        raise UserError(f'--latency-seconds is a time of 0 or more, got {seconds:g}. 0 leaves measuring out.')


def parse_options(values: Sequence[str] | None) -> dict | None:
    """The settings in KEY=VALUE words, as mmengine's `--cfg-options` reads them.

    Raises:
        UserError: a value that it cannot read.
    """
    if values is None:
        return None

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    try:
        return parser.parse_args(['--cfg-options', *values]).cfg_options
    except (ValueError, AssertionError, RecursionError):
        # mmengine's parser recurses for ever on a value such as [dict(a=1)].
        raise UserError(
            f'--cfg-options takes KEY=VALUE with numbers, words or lists such as key="[a,b]", got {values}. '
            'Write anything else, such as a list of dicts, into a config with _base_.') from None
