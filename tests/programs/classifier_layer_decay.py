"""mmpretrain's classifier on RepVGG-A0 in both forms: learning rate and weight decay of every parameter without
layer-wise decay, with mmpretrain's constructor and with ours. `RATE`; prints JSON."""

import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

sys.path += [str(Path(__file__).parents[1])]

from helpers import group_settings

from repvgg_mm.openmmlab.model import build_model

CONSTRUCTORS = ('mmpretrain.LearningRateDecayOptimWrapperConstructor', 'LayerDecayOptimWrapperConstructor')
found = {}
for deploy in (False, True):
    cfg = Config.fromfile('configs/classify_repvgg_a0_imagenet.py')
    cfg.model.backbone.deploy = deploy
    with torch.device('meta'):
        model = build_model(cfg)

    form = dict(without=group_settings(model, build_optim_wrapper(model, cfg.optim_wrapper)))
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = float(sys.argv[1])
    for constructor in CONSTRUCTORS:
        cfg.optim_wrapper.constructor = constructor
        form[constructor] = group_settings(model, build_optim_wrapper(model, cfg.optim_wrapper))
    found['deploy' if deploy else 'training'] = form
print(json.dumps(found))
