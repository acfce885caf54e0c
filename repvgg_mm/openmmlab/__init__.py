"""What MMEngine, mmsegmentation and mmdetection put around a model: configs, data, Runners.

Read in this order: `shipped` (the configs of this package), `config` (a config read, searched, copied), `model` (the
model of a config), `data` (its datasets), `preprocessing` (what it does to images), `runner` (training and testing),
`work_dir` (one training at a time, whole files), `resume` (going on after an interruption), `preemption` (stopping on a
signal), `amp`, `layer_decay` (learning rates by depth) and `device`.
"""
