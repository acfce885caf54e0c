"""Lets torchvision's published build be imported beside a CPU build of torch, for which there is none.

Its compiled operators do not load there; what it lacks then are two names, which are declared right
before torchvision is first imported. timm and mmpretrain need no more than that.
"""

import importlib.abc
import sys


class DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'torchvision':
            sys.meta_path.remove(self)
            import torch
            self.library = torch.library.Library('torchvision', 'FRAGMENT')
            for operator in ('nms', 'qnms'):
                if not hasattr(torch.ops.torchvision, operator):
                    self.library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
            sys.modules['torchvision_beside_cpu_torch'].library = self.library  # undone when collected
        return None


sys.meta_path.insert(0, DeclareOperators())
