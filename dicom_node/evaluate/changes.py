"""Scans as another scanner would have made them: noise, bias field, contrast, blur, thick slices.

Each change is made on the source's own voxels, before anything is placed or normalised, and is the
same for the same scan: its seed is the scan's key. None moves a voxel, so that masks stay valid.

References
----------
Gudbjartsson and Patz, The Rician distribution of noisy MRI data, 1995: the magnitude of a signal
with Gaussian noise in its two channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Voxels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Seen:
    """One scan that is to be changed."""

    voxels: Voxels
    #: (depth, height, width) mm
    spacing_mm: tuple[float, float, float]
    ct: bool
    seed: int

    @property
    def low(self) -> float:
        """Return air of a CT, and the least value of an MR."""
        return -1000.0 if self.ct else float(self.voxels.min())

    @property
    def span(self) -> float:
        """Return what the values of tissue span: to 1000 HU, or to the 99.5th percentile."""
        high = 1000.0 if self.ct else float(np.percentile(self.voxels, 99.5))
        return max(high - self.low, 1e-6)


@dataclass(frozen=True, slots=True)
class Change:
    """One way that scans differ, and how much."""

    name: str
    strength: str
    apply: Callable[[Seen], Voxels]
    #: "CT" and "MR", or one of them
    of: tuple[str, ...] = ("CT", "MR")


def _noise(seen: Seen) -> Voxels:
    """Add noise of 4 % of the span to an MR (Rician), of 40 HU to a CT (Gaussian)."""
    rng = np.random.default_rng(seen.seed)
    if seen.ct:
        return _as_voxels(seen.voxels + rng.normal(0.0, 40.0, seen.voxels.shape))
    sigma = 0.04 * seen.span
    real, imaginary = (rng.normal(0.0, sigma, seen.voxels.shape) for _ in range(2))
    return _as_voxels(np.hypot(seen.voxels - seen.low + real, imaginary) + seen.low)


def _bias_field(seen: Seen) -> Voxels:
    """Multiply an MR by a smooth field, from 0.7 to 1.4: one cubic spline over 3^3 knots."""
    knots = np.random.default_rng(seen.seed).uniform(-1.0, 1.0, (3, 3, 3))
    shape = seen.voxels.shape
    axes = [np.linspace(0.0, 2.0, side) for side in shape]
    field = ndimage.map_coordinates(
        knots, np.meshgrid(*axes, indexing="ij"), order=3, mode="nearest"
    )
    field *= 1.0 / max(float(np.abs(field).max()), 1e-6)  # -1 to 1
    return _as_voxels((seen.voxels - seen.low) * np.exp(0.35 * field) + seen.low)


def _contrast(seen: Seen) -> Voxels:
    """Raise the share of the span to the power 1.4."""
    share = np.clip((seen.voxels - seen.low) / seen.span, 0.0, None)
    return _as_voxels(share**1.4 * seen.span + seen.low)


def _blur(seen: Seen) -> Voxels:
    """Smooth by a Gaussian of 1.5 mm sigma."""
    return _as_voxels(ndimage.gaussian_filter(seen.voxels, [1.5 / mm for mm in seen.spacing_mm]))


def _resolution(seen: Seen) -> Voxels:
    """Average 2 x 2 voxels of each slice, and interpolate up again."""
    return _averaged(_averaged(seen.voxels, 1, 2), 2, 2)


def _thick_slices(seen: Seen) -> Voxels:
    """Average slices to 5 mm, at least two of them, and interpolate up again."""
    n = max(2, round(5.0 / seen.spacing_mm[0]))
    return _averaged(seen.voxels, 0, min(n, seen.voxels.shape[0]))


def _averaged(voxels: Voxels, axis: int, n: int) -> Voxels:
    """Average blocks of `n` along an axis (the last one may be shorter), linear between middles."""
    side = voxels.shape[axis]
    starts = np.arange(0, side, n)
    sizes = np.diff(np.append(starts, side))
    sums = np.add.reduceat(voxels.astype(np.float64), starts, axis=axis)
    means = np.moveaxis(sums, axis, 0) / sizes.reshape(-1, 1, 1)
    middles = starts + (sizes - 1) / 2
    at = np.interp(np.arange(side), middles, np.arange(len(middles)))
    low = np.minimum(at.astype(int), max(len(middles) - 2, 0))
    share = (at - low).reshape(-1, 1, 1)
    high = np.minimum(low + 1, len(middles) - 1)
    return _as_voxels(np.moveaxis(means[low] * (1 - share) + means[high] * share, 0, axis))


def _as_voxels(values: NDArray[np.floating]) -> Voxels:
    return np.ascontiguousarray(values, dtype=np.float32)


CHANGES = (
    Change("noise", "MR: Rician, 4 % of the range; CT: Gaussian, 40 HU", _noise),
    Change("bias field", "smooth, up to a factor exp(0.35)", _bias_field, ("MR",)),
    Change("contrast", "gamma 1.4 of the range", _contrast),
    Change("blur", "Gaussian, sigma 1.5 mm", _blur),
    Change("resolution", "2 x 2 voxels of a slice averaged", _resolution),
    Change("slice thickness", "slices averaged to 5 mm", _thick_slices),
)
