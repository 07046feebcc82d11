"""Random fields: what makes one made subject differ smoothly from another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
#: cells of the coarse grid per `sigma_mm`: linear interpolation between them shows no facets
_CELLS = 2.0


def smooth_field(
    shape: Sequence[int], grid_mm: Iterable[float], sigma_mm: float, random: np.random.Generator
) -> Field:
    """(depth, height, width) random field of zero mean and unit variance.

    Gaussian-filtered white noise: its autocorrelation is exp(-d^2 / 4 sigma^2).

    Parameters
    ----------
    shape, grid_mm
        Of the result: voxels, and the size of one, in (depth, height, width).
    sigma_mm
        How smooth it is.
    """
    step = sigma_mm / _CELLS
    sides = list(zip(shape, grid_mm, strict=True))
    # at least eight cells along an axis, or mean and variance would be those of a handful of values
    coarse_shape = [max(8, int(n * mm / step) + 2) for n, mm in sides]
    white = random.standard_normal(coarse_shape, dtype=np.float32)
    # wrapped: at a mirrored edge the field would vary more than inside
    field: Field = ndimage.gaussian_filter(white, _CELLS, mode="wrap")
    for axis, (n, mm) in enumerate(sides):
        # one product per axis: many times as fast as ndimage.zoom
        weights = _weights(n, field.shape[axis], mm / step)
        field = np.moveaxis(np.tensordot(weights, field, (1, axis)), 0, axis)
    # of the part that is used: a few large cells differ from all
    return np.ascontiguousarray((field - field.mean()) / field.std())


def _weights(n: int, n_coarse: int, cells: float) -> Field:
    """(n, n_coarse) weights of linear interpolation; voxel k lies at coarse index `cells` * k."""
    at = np.minimum(np.arange(n) * cells, n_coarse - 1)
    distance = np.abs(at[:, None] - np.arange(n_coarse))
    weights: Field = np.maximum(0, 1 - distance).astype(np.float32)
    return weights
