"""A folder to hand over: an engine, inputs for calibration, expected outputs, and a check that needs numpy alone.

Read in this order: `check` (the script in the folder), `readme` (its page of commands), `kit` (the folder).
"""
