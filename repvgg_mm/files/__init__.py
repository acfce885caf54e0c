"""Bytes on a disk: read without running code from them, written whole or not at all. Needs torch alone.

Read in this order: `atomic` (how anything is written), `checkpoint` (how a checkpoint is read and what is refused),
`unpickler` (the reader of pickles), `pickles` (what one asks for), `tensor_file` (`.safetensors`, with a checksum),
`download` (files with an address).
"""
