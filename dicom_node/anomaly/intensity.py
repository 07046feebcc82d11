"""Voxel values -> [0, 1], the range of the pictures that the encoder was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: where the upper quantile lies in [0, 1]: what is brighter than all usual tissue must still differ
_HEADROOM = 0.7


def normalize_percentiles(
    voxels: Tensor, foreground: Tensor, low: float = 0.01, high: float = 0.99
) -> Tensor:
    """(depth, height, width) values and mask -> the same in [0, 1], 0 outside.

    MR has no absolute unit; the two quantiles inside the foreground become 0 and 0.7, so that a
    lesion brighter than all usual tissue is not clipped into it. Raises ValueError for an empty
    foreground or one of a single value.
    """
    bottom, top = quantiles(voxels[foreground].float(), (low, high))
    if not bool(top > bottom):
        raise ValueError("all foreground voxels have one value")
    scaled = ((voxels.float() - bottom) / (top - bottom) * _HEADROOM).clamp(0, 1)
    return torch.where(foreground, scaled, torch.zeros_like(scaled))


def quantiles(inside: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """(n,) values of a foreground -> those below which the shares of them lie; ValueError for none.

    torch.quantile refuses more than 2**24 values: a regular subsample is as good.
    """
    if inside.numel() == 0:
        raise ValueError("the foreground is empty")
    ordered = inside[:: max(1, inside.numel() // 1_000_000)].sort().values
    return [ordered[round(share * (ordered.numel() - 1))] for share in shares]


def window_hounsfield(voxels: Tensor, centre: float, width: float) -> Tensor:
    """(depth, height, width) HU -> [0, 1] over the window, `width` above 0.

    HU are absolute: the same tissue has the same grey in every study, which percentiles would undo.
    The function is LINEAR_EXACT of PS3.3 C.11.2.1.3.2.
    """
    return ((voxels.float() - (centre - width / 2)) / width).clamp(0, 1)
