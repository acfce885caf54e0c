"""RepVGG for the OpenMMLab toolboxes. Importing this registers the backbone `RepVGG`.

What needs torch alone (`whole_model_convert`, `compare_models`, `fusible`, ...) is there without MMEngine and mmcv, and
`repvgg_mm.engine` without torch. Asking for anything else then says what to install.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from .errors import UserError  # noqa: F401
from .version import __version__  # noqa: F401

NEED_TORCH = {
    'ARCHS': 'archs', 'Arch': 'archs', 'RepVGGBlock': 'block', 'compare_models': 'convert.compare',
    'Branch': 'convert.foreign', 'FusedBlock': 'convert.foreign', 'Parts': 'convert.foreign',
    'fusible': 'convert.foreign', 'load_strictly': 'convert.weights', 'whole_model_convert': 'convert.whole',
    'read_checkpoint': 'files.checkpoint', 'fast_dilations': 'stages',
}
NEED_OPENMMLAB = {
    'RepVGG': 'backbone', 'RepVGGConvertHook': 'deploy.hook', 'BFloat16OptimWrapper': 'training.amp',
    'SaveOnSignalHook': 'training.preemption',
    'LayerDecayOptimWrapperConstructor': 'training.layer_decay',
    'load': 'deploy.load', 'predict': 'inference.predict',
}
__all__ = sorted(['UserError', '__version__', *NEED_TORCH, *NEED_OPENMMLAB])


def register() -> None:
    """Put what configs name into MMEngine's registries, and the blocks of other libraries among those that fuse."""
    from .environment import openmmlab_missing, torch_missing, wrong_combination
    if torch_missing():
        return

    from .convert import foreign_blocks  # noqa: F401  registers what it knows
    if openmmlab_missing():
        return

    if wrong_combination():
        import warnings
        warnings.warn(wrong_combination(), stacklevel=2)
    from .backbone import RepVGG  # noqa: F401
    from .deploy.hook import RepVGGConvertHook  # noqa: F401
    from .openmmlab.shipped import let_bases_be_named, let_the_hub_build
    from .training.amp import BFloat16OptimWrapper  # noqa: F401
    from .training.layer_decay import LayerDecayOptimWrapperConstructor  # noqa: F401
    from .training.preemption import SaveOnSignalHook  # noqa: F401
    let_bases_be_named()
    let_the_hub_build()


def __getattr__(name: str) -> object:
    if name in NEED_TORCH or name in NEED_OPENMMLAB:
        from .environment import openmmlab_missing, torch_missing
        missing = torch_missing() or (name in NEED_OPENMMLAB and openmmlab_missing())
        if missing:
            raise ImportError(missing)
        file = {**NEED_TORCH, **NEED_OPENMMLAB}[name]
        return getattr(import_module(f'.{file}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return __all__


def _is_command_line() -> bool:
    """Whether this is `repvgg-mm` or `python -m repvgg_mm`, which registers once it has read its arguments."""
    if not sys.argv:
        return False
    if sys.argv[0] == '-m':  # until Python has found the module, whose name stands before its arguments
        return sys.orig_argv[-len(sys.argv)] == 'repvgg_mm'
    return Path(sys.argv[0]).stem == 'repvgg-mm'


if not _is_command_line():
    register()
