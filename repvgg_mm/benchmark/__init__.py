"""Models and engines timed side by side, and what is written about it.

Read in this order: `benchmark` (both forms, other configs and engines, interleaved), `output` (its table, file and
picture), `page`.
"""
