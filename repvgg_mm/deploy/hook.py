"""A trained run leaves its deploy form behind."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError, first_line
from .checkpoint import Checkpoint
from .conversion import convert_checkpoint, write_deploy


@HOOKS.register_module()
class RepVGGConvertHook(Hook):
    """After training, convert the last and best checkpoints: NAME_deploy.pth and NAME_deploy.py appear beside each.

    Each conversion starts from the file, in a model of its own, and is proven as `tools/convert_whole.py`
    does it; the model that was trained is not touched. Under EMAHook the averaged weights are converted,
    with several processes the first one writes.

    A checkpoint that cannot be converted or proven is named in an error of the log, with the reason, and the
    training has ended well all the same: the checkpoints are written, and so are the other conversions.

    Args:
        shape: height and width of the input on which both forms are compared; from the config by default.
        strict: end with a UserError instead, once all that can be converted is.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self, shape: tuple[int, int] | None = None, strict: bool = False) -> None:
        self.shape = shape
        self.strict = strict

    def after_train(self, runner: Runner) -> None:
        if not is_main_process():
            return

        refused = []
        for path in written_checkpoints(runner):
            try:
                said = self._convert(path, runner.cfg)
            except Exception as error:  # of any model: hours of training do not end in a stack trace
                why = error if isinstance(error, UserError) else first_line(error)
                refused.append(f'{path.name} was not converted. {why}')
            else:
                runner.logger.info(said)

        if refused and self.strict:
            raise UserError('\n'.join(refused))
        for text in refused:
            runner.logger.error(text)

    def _convert(self, path: Path, cfg: Config) -> str:
        """Write the deploy form of a checkpoint beside it; returns what was done."""
        checkpoint = Checkpoint.read(path)
        if checkpoint.form == 'deploy':
            return f'{path} is in deploy form already.'

        conversion = convert_checkpoint(cfg, checkpoint, self.shape)
        weights = write_deploy(conversion, path.parent, stem=f'{path.stem}_deploy')
        worst = max(conversion.errors.values())
        return f'Wrote {weights} and {weights.with_suffix(".py")}, relative error {worst:.1e}.'


def written_checkpoints(runner: Runner) -> list[Path]:
    """The last and the best checkpoints that the Runner's CheckpointHooks have written and that are still there."""
    names = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            names.append(getattr(hook, 'last_ckpt', None))
            names.append(getattr(hook, 'best_ckpt_path', None))
            names += getattr(hook, 'best_ckpt_path_dict', {}).values()

    paths = [Path(name) for name in dict.fromkeys(names) if name]
    return [path for path in paths if path.is_file()]
