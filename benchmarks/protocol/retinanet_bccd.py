# RetinaNet, BCCD at 320x240: the same for every backbone (benchmarks/pareto.py).
_base_ = '../../configs/retinanet_repvgg_a0_bccd.py'

default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1, save_best=None))
