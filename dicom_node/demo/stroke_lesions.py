"""A real stroke's shape in a real head: its mask on the head's own grid, darker tissue inside it.

The head is never resampled: the mask comes to its grid, and only voxels of the lesion change. They
take values that the head has elsewhere, so that neither rounding nor interpolation tells them from
the others.

On T1 an infarct is darker than both grey and white matter and brighter than fluid. What is dark
already, a sulcus or a ventricle inside the mask, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.volume import Volume

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

#: of the filter that makes the edge: from 10 % to 90 % it takes one voxel of the head, 2.56 sigma
_EDGE_VOXELS = 1 / 2.56
#: weights below this change nothing that anybody could see
_LEAST_WEIGHT = 0.02
#: where full contrast ends, from fluid (0) to white matter (1); grey matter is at about 0.6
_TARGET = 0.25
#: of the filter, in voxels, that parts the level of a tissue from its texture and noise: what is
#: finer stays, 95 % of a white noise
_TEXTURE_VOXELS = 1.0
#: shares of the brain's voxels where the search for its three classes starts: about the middle of
#: each of them
_STARTS = (5.0, 40.0, 85.0)
#: rounds of the search, at most: it ends after some ten
_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Levels:
    """What the tissues of one head look like, in its own units."""

    csf: float
    grey: float
    white: float

    @property
    def target(self) -> float:
        """Where full contrast ends."""
        return self.csf + _TARGET * (self.white - self.csf)


def tissue_levels(voxels: Voxels, brain: Mask) -> Levels:
    """(depth, height, width) T1 and brain -> the means of three classes (k-means, Lloyd 1982).

    Raises ValueError where the brain has fewer than three different values.
    """
    values = np.clip(voxels[brain], *np.percentile(voxels[brain], (0.5, 99.5)))
    means: Floats = np.percentile(values, _STARTS).astype(np.float64)
    for _ in range(_ROUNDS):
        classes = np.searchsorted((means[1:] + means[:-1]) / 2, values)
        counts = np.bincount(classes, minlength=3)
        if not counts.all():
            raise ValueError("fluid, grey and white matter cannot be told apart in the brain")
        found: Floats = np.bincount(classes, values, minlength=3) / counts
        settled = np.allclose(found, means, rtol=1e-6)
        means = found
        if settled:
            break
    return Levels(*(float(mean) for mean in means))


def weight_on(mask: Volume, shape: tuple[int, ...], head_affine: Floats, to_head: Floats) -> Voxels:
    """Lesion mask in its own space -> (depth, height, width) share of lesion in the head, 0 to 1.

    Parameters
    ----------
    mask
        Above 0.5 inside.
    shape, head_affine
        The head's grid; (4, 4) index -> LPS mm.
    to_head
        (4, 4) LPS mm of the mask's space -> LPS mm of the head.

    Notes
    -----
    The edge is a voxel of the head wide, which also keeps a mask of finer voxels from aliasing.
    """
    edge_mm = abs(float(np.linalg.det(head_affine[:3, :3]))) ** (1 / 3)
    # the filter is as wide in the head as was asked, however the registration scales
    scale = abs(float(np.linalg.det(to_head[:3, :3]))) ** (1 / 3)
    sigma = _EDGE_VOXELS * edge_mm / scale / np.linalg.norm(mask.affine[:3, :3], axis=0)
    soft = ndimage.gaussian_filter((mask.voxels > 0.5).astype(np.float32), sigma, mode="constant")
    # index of the head -> index of the mask
    to_index = np.linalg.solve(to_head @ mask.affine, head_affine)
    weight: Voxels = ndimage.affine_transform(
        soft, to_index[:3, :3], to_index[:3, 3], shape, order=1, mode="constant"
    )
    weight[weight < _LEAST_WEIGHT] = 0
    return weight


def darken(voxels: Voxels, brain: Mask, weight: Voxels, contrast: float, levels: Levels) -> Voxels:
    """(depth, height, width) T1 -> the same with a lesion.

    The level l of the tissue is drawn towards the target t and its texture v - l is kept:
    v + contrast * weight * min(t - l, 0), but no darker than fluid.

    Parameters
    ----------
    weight
        As of `weight_on`; voxels where it is 0 stay as they are, to the bit.
    contrast
        Of the way from what is there to the target: 0 changes nothing.
    """
    inside = weight > 0
    drawn = np.minimum(levels.target - _level(voxels, brain)[inside], 0)
    before = voxels[inside]
    after = before + contrast * weight[inside] * drawn
    made = voxels.copy()
    made[inside] = _nearest(np.unique(voxels), np.maximum(after, np.minimum(before, levels.csf)))
    return made


def _level(voxels: Voxels, brain: Mask) -> Voxels:
    """(depth, height, width) smoothed within the brain alone; what it is outside does not count."""
    share: Voxels = ndimage.gaussian_filter(brain.astype(np.float32), _TEXTURE_VOXELS)
    level: Voxels = ndimage.gaussian_filter(np.where(brain, voxels, np.float32(0)), _TEXTURE_VOXELS)
    level /= np.maximum(share, np.float32(1e-6))
    return level


def _nearest(values: Voxels, wanted: Voxels) -> Voxels:
    """(n,) -> the nearest of the sorted `values` to each."""
    above = np.clip(np.searchsorted(values, wanted), 1, len(values) - 1)
    low, high = values[above - 1], values[above]
    return np.where(wanted - low < high - wanted, low, high)
