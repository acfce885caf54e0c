"""A run of MMEngine's Runner: how it starts, goes on and stops; a test of a model is one, too.

Read in this order: `runner` (a config made into a Runner), `launchers` (of several processes), `work_dir` (one training
at a time, whole files), `resume` (going on after an interruption), `preemption` (stopping on a signal), `amp` (mixed
precision), `compiling` and `layer_decay` (learning rates by depth).
"""
