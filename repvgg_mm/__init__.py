"""RepVGG for the OpenMMLab toolboxes. Importing this registers the backbone `RepVGG`."""

try:
    import mmcv  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'repvgg_mm needs mmengine and mmcv, and {error.name} cannot be imported ({error}). '
        "Install one stack, not both, in a clone: pip install --no-build-isolation -e '.[openmmlab]' or '.[onedl]' "
        '(README, section "Set-up").') from error

from .archs import ARCHS, Arch
from .backbone import RepVGG
from .block import RepVGGBlock
from .convert import foreign_blocks  # noqa: F401  registers what it knows
from .convert.compare import compare_models
from .convert.foreign import Branch, FusedBlock, Parts, fusible
from .convert.weights import load_strictly
from .convert.whole import whole_model_convert
from .deploy.hook import RepVGGConvertHook
from .errors import UserError
from .files.checkpoint import read_checkpoint
from .inference.predict import predict
from .openmmlab.amp import BFloat16OptimWrapper
from .stages import fast_dilations
from .version import __version__  # noqa: F401

__all__ = [
    'ARCHS', 'Arch', 'BFloat16OptimWrapper', 'Branch', 'FusedBlock', 'Parts', 'RepVGG', 'RepVGGBlock',
    'RepVGGConvertHook', 'UserError', 'compare_models', 'fast_dilations', 'fusible', 'load_strictly',
    'predict', 'read_checkpoint', 'whole_model_convert',
]
