"""Models in memory turned into their deploy form, and the proof. Needs torch alone.

Read in this order: `foreign` (blocks of other libraries, taken apart and fused) and `foreign_blocks` (which ones),
`blocks` (all blocks in a model), `weights` (loading a whole model completely), `whole` (`whole_model_convert`),
`reproducible` (how a model is run), `raw_outputs` (what it computes), `choices` (those of one model imposed on
another), `compare` (`compare_models`), `measure` (what a model costs).
"""
