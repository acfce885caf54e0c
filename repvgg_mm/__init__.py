"""RepVGG for the OpenMMLab toolboxes. Importing this registers the backbone `RepVGG`."""

try:
    import mmcv  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'repvgg_mm needs mmengine and mmcv, and {error.name} cannot be imported ({error}). '
        "Install one stack, not both, in a clone: pip install --no-build-isolation -e '.[openmmlab]' or '.[onedl]' "
        '(README, section "Set-up").') from error

from . import foreign_blocks  # noqa: F401  registers what it knows
from .amp import BFloat16OptimWrapper
from .archs import ARCHS, Arch
from .backbone import RepVGG, fast_dilations
from .block import RepVGGBlock
from .checkpoint import read_checkpoint
from .compare import compare_models
from .convert import whole_model_convert
from .convert_hook import RepVGGConvertHook
from .errors import UserError
from .foreign import Branch, FusedBlock, Parts, fusible
from .prediction import predict
from .weights import load_strictly

__version__ = '0.1.0'

__all__ = [
    'ARCHS', 'Arch', 'BFloat16OptimWrapper', 'Branch', 'FusedBlock', 'Parts', 'RepVGG', 'RepVGGBlock',
    'RepVGGConvertHook', 'UserError', 'compare_models', 'fast_dilations', 'fusible', 'load_strictly',
    'predict', 'read_checkpoint', 'whole_model_convert',
]
