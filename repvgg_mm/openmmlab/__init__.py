"""What MMEngine, mmsegmentation and mmdetection put around a model: configs, data, preprocessing.

Read in this order: `shipped` (the configs of this package), `config` (a config read, searched, copied), `model` (the
model of a config), `data` (its datasets), `preprocessing` (what it does to images) and `device`.
"""
