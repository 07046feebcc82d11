"""One real chest CT -> the chest that a cohort is made from: fine grid, little noise, no tumour.

Made once for a whole cohort. What the scanner left in the source, noise above all, would be the
same in every subject: it is reduced here, and each subject gets its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline

from dicom_node.demo.chest_healing import remove_tumour
from dicom_node.errors import IrregularGeometry, NotScorable
from dicom_node.volume import Volume

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: (depth, height, width): finer than a source of 5 mm slices can show along depth, and coarse
#: enough that a subject takes seconds
GRID_MM = np.array([2.0, 1.5, 1.5])
#: what a CT stores in 12 bits
HU_RANGE = (-1024.0, 3071.0)
#: standard deviation of the filter before an axis is made coarser: about a standard kernel
_BLUR_MM = 0.85
#: air and lung below, tissue above
_AIR_HU = -450.0
#: less air than this inside a body is no pair of lungs
_MIN_LUNGS_ML = 500.0
#: vessels thinner than twice this belong to the lung
_CLOSING_MM = 6.0


@dataclass(frozen=True, slots=True)
class Chest:
    """A chest without its tumour, towards S, P, L on `GRID_MM`."""

    #: (depth, height, width) HU
    voxels: Voxels
    #: (depth, height, width) both lungs with vessels and airways
    lungs: Mask
    #: (depth, height, width) the lungs without large vessels and airways
    parenchyma: Mask
    #: (4, 4) index -> LPS mm
    affine: NDArray[np.float64]


def make_template(volume: Volume, boxes_mm: NDArray[np.float64]) -> Chest:
    """Bring a chest CT onto the grid, and fill its tumour with the other lung's tissue.

    Parameters
    ----------
    volume
        Axial slices in HU, of any spacing.
    boxes_mm
        (n, 2, 3): the lowest and the highest LPS corner of n boxes that hold the tumour together;
        n = 0 leaves the lungs as they are.

    Raises
    ------
    IrregularGeometry
        The slices are not axial.
    NotScorable
        There are no lungs in the volume.
    """
    source, affine = _towards_spl(volume)
    spacing = np.diag(affine[:3, [2, 1, 0]])[::-1]
    voxels = _onto_grid(_reduce_noise(_blur(source, spacing)), spacing)
    grid = affine.copy()
    grid[:3, :3] *= GRID_MM / spacing
    lungs = find_lungs(voxels)
    if len(boxes_mm):
        voxels = remove_tumour(voxels, lungs, _boxes_mask(boxes_mm, grid, voxels.shape), GRID_MM)
        lungs = find_lungs(voxels)
    envelope = _close(lungs)
    return Chest(voxels, envelope, _parenchyma(voxels, envelope), grid)


def find_lungs(voxels: Voxels) -> Mask:
    """(depth, height, width) HU on `GRID_MM` -> the air inside the body; raises NotScorable.

    Air that reaches a side of the image is outside. Along depth the image ends inside the body, so
    that the trachea may end there too.
    """
    labels, n = ndimage.label(voxels < _AIR_HU)
    sides = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    outside = np.unique(np.concatenate([side.ravel() for side in sides]))
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[outside] = sizes[0] = 0
    found_ml = float(sizes.max() * GRID_MM.prod() / 1000)
    if found_ml < _MIN_LUNGS_ML:
        raise NotScorable(
            f"no lungs: the largest air space inside the body has {found_ml:.0f} ml, and lungs "
            f"at least {_MIN_LUNGS_ML:.0f} ml; name a CT of a whole chest"
        )
    # the other lung, where no trachea joins the two
    lungs: Mask = (sizes > 0.2 * sizes.max())[labels]
    return lungs


def _towards_spl(volume: Volume) -> tuple[Voxels, NDArray[np.float64]]:
    """Turn axial slices so that the index grows towards S, P and L."""
    affine = volume.affine.copy()
    directions = affine[:3, :3] / volume.spacing_mm
    axial = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    if not np.allclose(np.abs(directions), axial, atol=0.02):
        raise IrregularGeometry("the slices are not axial; name a series of axial slices")
    backward = tuple(axis for axis in range(3) if directions[2 - axis, axis] < 0)
    for axis in backward:
        affine[:3, 3] += affine[:3, axis] * (volume.voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
    # less than a degree is not worth an oblique grid
    affine[:3, :3] = axial * np.array(volume.spacing_mm)
    return np.clip(np.flip(volume.voxels, backward), *HU_RANGE), affine


def _blur(voxels: Voxels, spacing: NDArray[np.float64]) -> Voxels:
    """Take away what the coarser grid would alias; an axis that becomes finer stays as it is."""
    sigma = np.where(spacing < GRID_MM, _BLUR_MM, 0.0) / spacing
    blurred: Voxels = ndimage.gaussian_filter(voxels, sigma)
    return blurred


def _reduce_noise(voxels: Voxels) -> Voxels:
    """Smooth in-plane where the variance is no more than the noise's (Lee 1980, eq. 8).

    The noise is the usual variance in soft tissue; vessels and edges have more, and stay.
    """
    window = (1, 5, 5)
    mean = ndimage.uniform_filter(voxels, window)
    variance = np.maximum(ndimage.uniform_filter(voxels * voxels, window) - mean * mean, 0)
    soft = np.abs(mean - 40) < 60
    noise = float(np.median(variance[soft])) if soft.any() else 0.0
    kept = np.maximum(variance - noise, 0) / np.maximum(variance, 1.0)
    reduced: Voxels = mean + kept * (voxels - mean)
    return reduced


def _onto_grid(voxels: Voxels, spacing: NDArray[np.float64]) -> Voxels:
    """Interpolate by cubic splines, from the first voxel's centre to within the last one's."""
    for axis, ratio in enumerate(GRID_MM / spacing):
        n = voxels.shape[axis]
        at = np.arange(int((n - 1) / ratio + 1e-6) + 1) * ratio
        # the spline is linear in its values: one product instead of a spline per line
        weights = CubicSpline(np.arange(n), np.eye(n))(at).astype(np.float32)
        voxels = np.moveaxis(np.tensordot(weights, voxels, (1, axis)), 0, axis)
    return np.ascontiguousarray(np.clip(voxels, *HU_RANGE))


def _boxes_mask(
    boxes_mm: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, ...]
) -> Mask:
    """(depth, height, width) True in any of the boxes."""
    mask = np.zeros(shape, dtype=bool)
    corners = (boxes_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T  # (n, 2, 3)
    for low, high in corners:
        mask[
            tuple(
                slice(max(0, int(np.ceil(a))), int(b) + 1) for a, b in zip(low, high, strict=True)
            )
        ] = True
    return mask


def _close(lungs: Mask) -> Mask:
    """Close the gaps that vessels leave, within the slices' own box."""
    # a margin, or the closing would stick to the edge
    margin = int(_CLOSING_MM / GRID_MM.min()) + 2
    padded = np.pad(lungs, margin, mode="constant")
    near = ndimage.distance_transform_edt(~padded, sampling=GRID_MM) <= _CLOSING_MM
    closed: Mask = ndimage.distance_transform_edt(near, sampling=GRID_MM) > _CLOSING_MM
    inner = slice(margin, -margin)
    return closed[inner, inner, inner] | lungs


def _parenchyma(voxels: Voxels, lungs: Mask) -> Mask:
    """Leave out vessels and airways that are wide enough to outlast a filter of 1.5 mm."""
    smoothed = ndimage.gaussian_filter(voxels, 1.5 / GRID_MM)
    return lungs & (smoothed > -960) & (smoothed < -650)
