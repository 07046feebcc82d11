"""What is body: threshold, closing and filling, without a network.

Made for what the scores need: no token of air, and every lesion inside. A mask that is too large
costs time; one that is too small hides what is sought.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor


def otsu_threshold(values: Tensor, bins: int = 256) -> float:
    """Return the value that best separates `values` into two classes (Otsu 1979, eq. 18).

    Raises ValueError where all of them are one value.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        raise ValueError("all voxels have one value")
    counts = torch.histc(values.float(), bins, low, high).double()
    centres = torch.linspace(low, high, bins + 1, dtype=torch.float64).unfold(0, 2, 1).mean(1)
    weight = counts.cumsum(0)
    moment = (counts * centres).cumsum(0)
    total, mean = weight[-1], moment[-1]
    # sigma_B^2(k), in counts instead of probabilities: the factor does not move its maximum
    between = (mean * weight / total - moment).square() / (weight * (total - weight)).clamp(
        min=1e-9
    )
    # between two well separated classes every threshold is as good: take the middle one
    best = between[:-1] >= between[:-1].max() * (1 - 1e-9)
    return float(centres[:-1][best].mean())


def body_mask(voxels: Tensor, low_factor: float = 0.5) -> Tensor:
    """(depth, height, width) -> mask of the body: above the noise, closed and filled.

    MR noise lies near zero and tissue is broad, so half of Otsu's threshold keeps dark tissue
    (ventricles, lesions) that the threshold itself would cut out. Raises ValueError for a volume of
    one value.
    """
    low = float(voxels.min())
    threshold = low + low_factor * (otsu_threshold(voxels) - low)
    mask = (voxels > threshold).float()[None, None]
    # closing bridges dark gaps of up to four voxels, such as the bone between scalp and brain in MR
    closed = 1 - _dilate(1 - _dilate(mask, 2), 2)
    return fill_enclosed(closed[0, 0] > 0.5)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """(1, 1, depth, height, width) -> the same, dilated by a cube, one axis after the other."""
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * radius + 1, radius
        mask = nnf.max_pool3d(mask, kernel, 1, padding)
    return mask


def centroid_mm(mask: Tensor, affine: Tensor) -> Tensor:
    """(depth, height, width) mask, not empty, and index->LPS affine -> (3,) centroid in LPS mm."""
    where = mask.nonzero().double()
    if where.shape[0] == 0:
        raise ValueError("the foreground is empty")
    return affine.double()[:3, :3] @ where.mean(0) + affine.double()[:3, 3]


def fill_enclosed(mask: Tensor) -> Tensor:
    """(depth, height, width) mask -> the same with what the body encloses in its axial slice.

    A voxel is enclosed when there is body on all four sides of it: lungs, sinuses and ventricles
    are.
    """
    flags = mask.to(torch.uint8)
    sides = [
        _seen_before(flags, 1),
        _seen_before(flags.flip(1), 1).flip(1),
        _seen_before(flags, 2),
        _seen_before(flags.flip(2), 2).flip(2),
    ]
    return mask | (torch.stack(sides).amin(0) > 0)


def _seen_before(flags: Tensor, axis: int) -> Tensor:
    """(depth, height, width) 0/1 -> 1 from the first 1 along `axis` on."""
    return flags.cummax(axis).values
