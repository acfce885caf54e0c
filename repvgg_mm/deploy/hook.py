"""A trained run leaves its deploy form behind."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from .conversion import conversion_of, write_deploy


@HOOKS.register_module()
class RepVGGConvertHook(Hook):
    """After training, convert the last and best checkpoints: NAME_deploy.pth and NAME_deploy.py appear beside each.

    Each conversion starts from the file, in a model of its own, and is proven as `tools/convert_whole.py`
    does it; the model that was trained is not touched. Under EMAHook the averaged weights are converted,
    with several processes the first one writes.

    Args:
        shape: height and width of the input on which both forms are compared; from the config by default.

    Raises:
        UserError: a checkpoint cannot be converted; the checkpoints themselves are written and the others
            converted by then.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self, shape: tuple[int, int] | None = None) -> None:
        self.shape = shape

    def after_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        refused = []
        for path in written_checkpoints(runner):
            try:
                conversion = conversion_of(Config(runner.cfg.to_dict()), path, self.shape)
            except UserError as error:
                refused.append(f'{path.name} was not converted. {error}')
                continue
            if conversion is None:
                runner.logger.info(f'{path} is in deploy form already.')
                continue
            weights = write_deploy(conversion, path.parent, stem=f'{path.stem}_deploy')
            worst = max(conversion.errors.values())
            runner.logger.info(f'Wrote {weights} and {weights.with_suffix(".py")}, relative error {worst:.1e}.')
        if refused:
            raise UserError('\n'.join(refused))


def written_checkpoints(runner: Runner) -> list[Path]:
    """The last and the best checkpoints that the Runner's CheckpointHooks have written and that are still there."""
    paths = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            best = getattr(hook, 'best_ckpt_path', None)
            paths += [getattr(hook, 'last_ckpt', None), best, *getattr(hook, 'best_ckpt_path_dict', {}).values()]
    return [path for path in map(Path, dict.fromkeys(filter(None, paths))) if path.is_file()]
