"""Volume -> stacks of slices along the three anatomical axes."""

from __future__ import annotations

import torch
from torch import Tensor


def slice_positions(n_tokens: int, pitch: int, per_token: int) -> Tensor:
    """Return (n_tokens, per_token) positions in voxels, evenly spread in each token's depth."""
    within = (torch.arange(per_token, dtype=torch.float32) + 0.5) / per_token * pitch - 0.5
    return torch.arange(n_tokens, dtype=torch.float32)[:, None] * pitch + within


def take_slices(volume: Tensor, axis: int, positions: Tensor) -> Tensor:
    """(depth, height, width), n positions along `axis` -> (n, rows, columns), linear."""
    moved = volume.movedim(axis, 0)
    last = moved.shape[0] - 1
    below = positions.floor().clamp(0, last).long()
    above = (below + 1).clamp(max=last)
    weight = (positions - below).clamp(0, 1)[:, None, None]
    return moved[below] * (1 - weight) + moved[above] * weight
