"""RepVGG for the OpenMMLab toolboxes. Importing this registers the backbone `RepVGG`.

What needs torch alone (`whole_model_convert`, `compare_models`, `fusible`, ...) is there without MMEngine and mmcv, and
`repvgg_mm.engine` without torch. Asking for anything else then says what to install.
"""

from .errors import UserError
from .version import __version__  # noqa: F401

__all__ = [
    'ARCHS', 'Arch', 'BFloat16OptimWrapper', 'Branch', 'FusedBlock', 'Parts', 'RepVGG', 'RepVGGBlock',
    'RepVGGConvertHook', 'UserError', 'compare_models', 'fast_dilations', 'fusible', 'load_strictly',
    'predict', 'read_checkpoint', 'whole_model_convert',
]
NEED_OPENMMLAB = ('BFloat16OptimWrapper', 'RepVGG', 'RepVGGConvertHook', 'predict')

_missing = {}  # the sentence to say for each name that is not there

try:
    import torch  # noqa: F401
except ImportError as error:
    _sentence = (
        f'repvgg_mm converts models of torch, and torch cannot be imported ({error}). '
        'Install it: pip install torch (docs/install.md).')
    _missing = dict.fromkeys(set(__all__) - {'UserError'}, _sentence)
else:
    from .archs import ARCHS, Arch
    from .block import RepVGGBlock
    from .convert import foreign_blocks  # noqa: F401  registers what it knows
    from .convert.compare import compare_models
    from .convert.foreign import Branch, FusedBlock, Parts, fusible
    from .convert.weights import load_strictly
    from .convert.whole import whole_model_convert
    from .files.checkpoint import read_checkpoint
    from .stages import fast_dilations

    try:
        import mmcv  # noqa: F401
        import mmengine  # noqa: F401
    except ImportError as error:
        _sentence = (
            f'repvgg_mm needs mmengine and mmcv, and {error.name} cannot be imported ({error}). '
            "Install one stack, not both, in a clone: pip install --no-build-isolation -e '.[openmmlab]' or '.[onedl]' "
            '(docs/install.md).')
        _missing = dict.fromkeys(NEED_OPENMMLAB, _sentence)
    else:
        from .backbone import RepVGG
        from .deploy.hook import RepVGGConvertHook
        from .inference.predict import predict
        from .openmmlab.amp import BFloat16OptimWrapper


def __getattr__(name: str) -> object:
    if name in _missing:
        raise ImportError(_missing[name])
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
