"""For each classification config: how many parameters the optimizer decays, by kind. Needs mmpretrain; prints JSON."""

import json
from collections import Counter
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from repvgg_mm.openmmlab.model import build_model

found = {}
for path in sorted(Path('configs').glob('classify_*.py')):
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = build_model(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(parameter): group['weight_decay'] for group in optimizer.param_groups for parameter in group['params']}
    counts = Counter()
    for name, module in model.named_modules():
        kind = next((kind for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) if isinstance(module, kind)), None)
        if kind:
            kind = 'identity' if name.endswith('branch_norm') else kind.__name__
            for tensor, parameter in module.named_parameters():
                counts[f'{kind}.{tensor}: {decay[id(parameter)]:g}'] += 1
    found[path.name] = counts
print(json.dumps(found))
