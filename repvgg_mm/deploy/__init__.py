"""A checkpoint's way to its deploy form.

Read in this order: `checkpoint` (a file read once), `load` (a trained model in a program), `config` (how a config
describes the deploy form), `proof` (that both forms are equal), `conversion` (load, convert, prove, write), `costs`
(what both forms cost), `hook` (the same at the end of a training), `weight_file` (a bare backbone's file to another
layout or form).
"""
