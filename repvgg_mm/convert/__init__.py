"""Models in memory turned into their deploy form, and the proof. Needs torch alone.

Read in this order: `reproducible` (how a model is run), `foreign` (blocks of other libraries, taken apart and fused),
`foreign_blocks` (which ones) and `own_methods` (those that fuse themselves), `blocks` (all blocks in a model),
`weights` (loading a whole model completely), `whole` (`whole_model_convert`), `raw_outputs` (what a model computes),
`choices` (those of one model imposed on another), `compare` (`compare_models`), `measure` (what a model costs).
"""
