"""A checkpoint that was read once, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def dataset_meta_of(checkpoint: Mapping) -> dict:
    """`dataset_meta` with the classes and palette that a checkpoint names, or nothing.

    The toolboxes' inference interfaces look for it.
    """
    dataset = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    if 'classes' not in dataset:
        return {}
    return dict(dataset_meta={
        key: np.asarray(dataset[key]).tolist() for key in ('classes', 'palette') if key in dataset})
