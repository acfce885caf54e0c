"""Adaptive average pooling as two matrix products: exact for any size, in operators that every engine has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """R (bins x size) with R @ v the adaptive average of a vector v of `size` elements.

    Bin i averages the elements from floor(i * size / bins) to ceil((i + 1) * size / bins), that one
    excluded, as torch.nn.AdaptiveAvgPool1d does: row i is 1 / width there and 0 elsewhere. `size` may be
    symbolic: the matrix is then built from the shape inside the exported graph.
    """
    i = torch.arange(bins, device=like.device)
    j = torch.arange(size, device=like.device)
    start = torch.div(i * size, bins, rounding_mode='trunc')
    end = torch.div((i + 1) * size + (bins - 1), bins, rounding_mode='trunc')

    inside = (j >= start[:, None]) & (j < end[:, None])                  # bins, size
    width = (end - start)[:, None]                                       # bins, 1
    return inside.to(like) / width.to(like)


class ExactAdaptiveAvgPool2d(nn.Module):
    """X -> R_h X R_w^T, which equals torch.nn.AdaptiveAvgPool2d(bins); None in `bins` leaves that side as it is.

    Exporters know the pooling only where the bins divide the size.
    """

    def __init__(self, bins: tuple[int | None, int | None]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:                              # N, C, H, W
        rows, columns = self.bins
        height, width = x.shape[2:]
        if columns is not None:
            x = x @ averaging_matrix(width, columns, x).T                # N, C, H, columns
        if rows is not None:
            x = averaging_matrix(height, rows, x) @ x                    # N, C, rows, columns
        return x


def replace_adaptive_pooling(model: nn.Module) -> nn.Module:
    """Make every AdaptiveAvgPool2d in `model` exact for export, that to 1x1 excepted, which is a plain mean.

    Returns `model`, changed; another module if it is such a pooling itself.
    """
    if isinstance(model, nn.AdaptiveAvgPool2d):
        bins = model.output_size
        if not isinstance(bins, tuple):
            bins = (bins, bins)
        return model if bins == (1, 1) else ExactAdaptiveAvgPool2d(bins)

    for name, child in model.named_children():
        setattr(model, name, replace_adaptive_pooling(child))
    return model
