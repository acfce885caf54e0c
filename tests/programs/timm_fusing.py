"""Run where timm is: every net of timm with a fusing method, converted here and by timm itself, as JSON lines."""

import copy
import inspect
import json
import sys
import warnings
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

sys.path += [str(Path(__file__).parents[1])]

from helpers import image, randomise_norms

from repvgg_mm import UserError, whole_model_convert
from repvgg_mm.convert.compare import relative_error
from repvgg_mm.convert.own_methods import METHODS

torch.set_default_dtype(torch.float64)  # timm's methods make float32 layers of float64 ones otherwise
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, _BatchNorm)


def families() -> list[str]:
    """The smallest variant of each of timm's files in which a block has a fusing method."""
    found = []
    for module in timm.list_modules():
        source = sys.modules[f'timm.models.{module}']
        classes = [cls for _, cls in inspect.getmembers(source, inspect.isclass) if cls.__module__ == source.__name__]
        if any(name in vars(cls) for cls in classes for name in METHODS):
            found += timm.list_models(module=module)
    return found


def layers_of(model: nn.Module) -> int:
    return sum(isinstance(module, LAYERS) for module in model.modules())


@torch.no_grad()
def try_net(name: str) -> dict:
    torch.manual_seed(0)
    model = randomise_norms(timm.create_model(name, num_classes=10)).eval()
    size = model.default_cfg['input_size'][-1]
    x = image(1, 3, size, size)
    before = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try:
            ours = whole_model_convert(model)
        except UserError as error:
            return dict(name=name, refused=str(error))
    theirs = timm.utils.reparameterize_model(before)
    return dict(
        name=name, before=layers_of(before), ours=layers_of(ours), theirs=layers_of(theirs),
        error=relative_error(before(x), ours(x)), theirs_error=relative_error(before(x), theirs(x)),
        norms=sum(isinstance(module, _BatchNorm) for module in ours.modules()),
        said=[str(one.message)[:300] for one in said if 'left' in str(one.message).lower()])


for net in sys.argv[1:] or families():
    print(json.dumps(try_net(net)), flush=True)
