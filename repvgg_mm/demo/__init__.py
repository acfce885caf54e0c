"""What the demo is made of.

Read in this order: `shapes` (the generated data set), `pictures` (predictions, training, latency), `summary` (the table
at the end). The steps of the demo itself are a command: `repvgg_mm/commands/demo.py`.
"""
