"""Token scores -> voxel anomaly map and subject score; higher is more anomalous."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor


def fuse(scales: Sequence[Tensor]) -> Tensor:
    """Per scale (..., layers, D, H, W), coarse to fine -> (..., D, H, W) of the finest: the mean.

    Over the layers of all scales, each of equal weight; coarse grids are interpolated. NaN where
    there is no fine token.
    """
    finest = scales[-1]
    total = torch.zeros_like(finest[..., 0, :, :, :])
    for scale in scales:
        ratio = finest.shape[-3] // scale.shape[-3]
        mean = scale.sum(-4)
        total += mean if ratio == 1 else upsample(mean, ratio)
    n_layers = sum(scale.shape[-4] for scale in scales)
    return torch.where(finest[..., 0, :, :, :].isfinite(), total / n_layers, torch.nan)


def upsample(grid: Tensor, pitch: int) -> Tensor:
    """(..., D, H, W) with NaN where there is no token -> each side times `pitch`, trilinear.

    Interpolation is by the tokens that exist (normalised by their weight), so that the rim of the
    foreground is not pulled towards zero; voxels that no token reaches are 0.
    """
    known = grid.isfinite()
    filled = torch.where(known, grid, torch.zeros_like(grid))
    both = torch.stack([filled, known.float()]).view(2, -1, *grid.shape[-3:])  # 2 n D H W
    up = nnf.interpolate(both, scale_factor=pitch, mode="trilinear", align_corners=False)
    mean = torch.where(up[1] > 1e-3, up[0] / up[1].clamp(min=1e-3), torch.zeros_like(up[0]))
    return mean.view(*grid.shape[:-3], *mean.shape[-3:])


def smooth(volume: Tensor, mask: Tensor, sigma_voxels: float) -> Tensor:
    """(depth, height, width) -> the same, Gaussian inside the mask (normalised), 0 outside."""
    if sigma_voxels <= 0:
        return volume * mask.float()
    out = torch.zeros_like(volume)
    if not bool(mask.any()):
        return out
    box = _box(mask)  # nothing outside of it has a weight, or is asked for
    inside, weight = mask[box], mask[box].float()
    # by the blurred mask: the rim is not pulled towards the 0 outside
    blurred = _gaussian(torch.stack([volume[box] * weight, weight]), sigma_voxels)
    out[box] = torch.where(inside, blurred[0] / blurred[1].clamp(min=1e-6), 0.0)
    return out


def _box(mask: Tensor) -> tuple[slice, ...]:
    """(depth, height, width) with a voxel set -> the smallest box that holds all of them."""
    box = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        (where,) = mask.any(axes[1]).any(axes[0]).nonzero(as_tuple=True)
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def _gaussian(stack: Tensor, sigma: float) -> Tensor:
    """(n, depth, height, width) -> the same, separable Gaussian, truncated at 3 sigma."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in (1, 2, 3):  # separable: three short sums instead of one over a cube
        stack = _along(stack, kernel, axis)
    return stack


def _along(stack: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Correlate `stack` with `kernel` along one axis, zeros outside (faster than conv3d)."""
    radius, length = kernel.numel() // 2, stack.shape[axis]
    out = torch.zeros_like(stack)
    for offset, weight in zip(range(-radius, radius + 1), kernel.tolist(), strict=True):
        n = length - abs(offset)
        if n > 0:
            target = out.narrow(axis, max(0, -offset), n)
            target.add_(stack.narrow(axis, max(0, offset), n), alpha=weight)
    return out


def subject_score(grid: Tensor, share: float = 0.002) -> float:
    """(D, H, W) token scores, NaN where none -> mean of the highest share of them (at least one).

    CoDeGraph3D takes the maximum; the mean of a few is steadier against one stray token. Raises
    ValueError where there is no score at all.
    """
    values = grid[grid.isfinite()]
    if values.numel() == 0:
        raise ValueError("there is no token score")
    count = max(1, math.ceil(share * values.numel()))
    return float(values.topk(count).values.mean())
