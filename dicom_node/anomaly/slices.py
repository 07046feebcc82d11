"""Volume -> stacks of slices along the three anatomical axes.

The canonical grid's axes are the patient's, so a stack of axis 0, 1 or 2 is axial, coronal or
sagittal whatever the orientation in which the series was acquired.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slice_positions(n_tokens: int, pitch: int, per_token: int) -> Tensor:
    """Return (n_tokens, per_token) positions, from voxel 0's centre, even in each token's depth."""
    within = (torch.arange(per_token, dtype=torch.float32) + 0.5) / per_token * pitch - 0.5
    return torch.arange(n_tokens, dtype=torch.float32)[:, None] * pitch + within


def take_slices(volume: Tensor, axis: int, positions: Tensor) -> Tensor:
    """(depth, height, width), n positions along `axis` -> (n, rows, columns), linear.

    The two axes that are left keep their order; positions beyond an end take the outermost slice.
    """
    moved = volume.movedim(axis, 0)  # slices rows columns
    last = moved.shape[0] - 1
    below = positions.floor().clamp(0, last).long()
    above = (below + 1).clamp(max=last)
    weight = (positions - below).clamp(0, 1)[:, None, None]
    return moved[below] * (1 - weight) + moved[above] * weight
