"""Predictions for images and videos of one's own.

Read in this order: `media` (which files are meant, how pictures are written), `image_model` (a function of an image),
`drawing` (its prediction as a picture), `predict` (all of it together; `repvgg_mm.predict` stands there).
"""
