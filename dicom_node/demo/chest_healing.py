"""Take the tumour out of a chest: the other lung, mirrored, in its place.

A tumour that every subject of a cohort has is usual, and hides what lies beside it. Tissue of the
same patient's other lung has the right density, noise and vessels; it fits because the mirrored
lung is first brought to the outline of what is left of its twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: around the boxes: readers mark the tumour and not the clouded lung about it
_REACH_MM = 32.0
#: over which the mirrored tissue fades out
_FADE_MM = 12.0
#: from the mirrored pleura inwards: its own chest wall stays out
_RIM_MM = 2.0
#: slices above and below the boxes that are worked on
_MORE_SLICES = 16


@dataclass(frozen=True, slots=True)
class _Mirror:
    """Where each voxel of one lung takes its tissue from in the other one."""

    #: (depth,) column of the mirror plane
    plane: NDArray[np.float64]
    #: row that stays where it is when stretched
    row: float
    stretch: float
    #: rows, columns
    shift: tuple[float, float]

    def sample(
        self, values: Voxels | Mask, index: tuple[slice, ...], order: Literal[0, 1]
    ) -> Voxels:
        """Return the mirrored values at the voxels of `index`."""
        at = np.mgrid[index].astype(np.float32)  # (3, depth, height, width)
        plane = self.plane[at[0].astype(int)]
        at[1] = (at[1] - self.row - self.shift[0]) / self.stretch + self.row
        at[2] = 2 * plane - at[2] + self.shift[1]
        mirrored: Voxels = ndimage.map_coordinates(
            np.asarray(values, dtype=np.float32), at, order=order, mode="nearest"
        )
        return mirrored


def remove_tumour(voxels: Voxels, lungs: Mask, boxes: Mask, grid_mm: NDArray[np.float64]) -> Voxels:
    """Return (depth, height, width) HU with mirrored lung in and around `boxes`.

    Parameters
    ----------
    lungs
        The air in the lungs, as far as the tumour leaves any.
    boxes
        True where a reader has marked the tumour; all of it in one lung.
    grid_mm
        Size of a voxel.

    Notes
    -----
    Outside the mirrored lung nothing changes, so that ribs, and a rim of the tumour where the
    mirrored lung is the smaller one, stay. Towards the mediastinum the boxes' own edge is the
    limit: the mirrored lung knows nothing of the aorta.
    """
    rows = np.flatnonzero(boxes.any(axis=(1, 2)))
    zone = (
        slice(max(0, rows[0] - _MORE_SLICES), min(len(boxes), rows[-1] + 1 + _MORE_SLICES)),
        *(slice(n) for n in voxels.shape[1:]),
    )
    mirror = _fit(lungs, boxes, zone, grid_mm)
    lung = _inner(mirror.sample(lungs, zone, 1) > 0.5, grid_mm)
    weight = lung * _nearness(boxes[zone], mirror.plane[zone[0]], grid_mm)
    healed = voxels.copy()
    healed[zone] += weight * (mirror.sample(voxels, zone, 1) - voxels[zone])
    return healed


def _fit(
    lungs: Mask, boxes: Mask, zone: tuple[slice, ...], grid_mm: NDArray[np.float64]
) -> _Mirror:
    """Try shifts and stretches of the mirrored lung; return the one that disagrees least.

    Lung that the mirrored one lacks counts everywhere, lung that it has too much only away from the
    tumour.
    """
    plane = _mirror_plane(lungs)
    row = float(np.argwhere(lungs.any(axis=(0, 2))).mean())
    far = ndimage.distance_transform_edt(~boxes[zone], sampling=grid_mm) > 15
    columns = np.arange(lungs.shape[2])
    # 10 mm beside the plane: neither mediastinum nor trachea
    beside = (columns - plane[zone[0], None]) * _side(boxes, plane) * grid_mm[2] > 10
    some = (slice(None, None, 4), *[slice(None, None, 2)] * 2)
    index = tuple(
        slice(whole.start or 0, whole.stop, part.step)
        for whole, part in zip(zone, some, strict=True)
    )
    mine, far, beside = lungs[index], far[some], beside[:, None, :][some[0], :, some[2]]

    def disagreement(mirror: _Mirror) -> int:
        other = mirror.sample(lungs, index, 0) > 0.5
        return int((((mine & ~other) | (other & ~mine & far)) & beside).sum())

    shifts = product(np.arange(-4, 9, 2.0) / grid_mm[1], np.arange(-4, 5, 2.0) / grid_mm[2])
    tries = [
        _Mirror(plane, row, stretch, shift)
        for shift, stretch in product(shifts, (0.96, 1.0, 1.04, 1.08))
    ]
    return min(tries, key=disagreement)


def _mirror_plane(lungs: Mask) -> NDArray[np.float64]:
    """(depth,) column midway between the outer edges of the lungs: a straight line along depth."""
    middle, wide = [], []
    areas = lungs.sum(axis=(1, 2))
    for number in np.flatnonzero(areas > 0.25 * areas.max()):
        edges = np.flatnonzero(lungs[number].any(axis=0))
        middle.append((edges[0] + edges[-1]) / 2)
        wide.append(number)
    slope, start = (float(value) for value in np.polyfit(wide, middle, 1))
    return start + slope * np.arange(len(lungs), dtype=np.float64)


def _side(boxes: Mask, plane: NDArray[np.float64]) -> int:
    """Return 1 where the boxes lie towards L of the plane, -1 otherwise."""
    where = np.argwhere(boxes)
    return 1 if (where[:, 2] - plane[where[:, 0]]).mean() > 0 else -1


def _inner(lung: Mask, grid_mm: NDArray[np.float64]) -> Voxels:
    """Return weights: 1 inside the lung and its vessels, 0 on the pleura, smooth between."""
    near = ndimage.distance_transform_edt(~lung, sampling=grid_mm) <= 6
    closed = ndimage.distance_transform_edt(near, sampling=grid_mm) - 6
    weights: Voxels = np.clip((closed - _RIM_MM) / 2, 0, 1).astype(np.float32)
    return weights


def _nearness(boxes: Mask, plane: NDArray[np.float64], grid_mm: NDArray[np.float64]) -> Voxels:
    """Return weights: 1 in the boxes and around them, 0 beyond reach and towards the middle."""
    # along depth tumour and cloud end soon: vessels of the hilum should stay
    apart = ndimage.distance_transform_edt(~boxes, sampling=grid_mm * [2, 1, 1])
    reach = np.clip((_REACH_MM - apart) / _FADE_MM, 0, 1)
    side = _side(boxes, plane)
    # distance of the boxes' inner edge from the plane, in slices without a box as in the nearest
    columns = (np.arange(boxes.shape[2]) - plane[:, None]) * side  # (depth, width)
    edge = np.where(boxes.any(axis=1), columns, np.inf).min(axis=1)
    known = np.flatnonzero(np.isfinite(edge))
    edge = np.interp(np.arange(len(edge)), known, edge[known])
    # readers' boxes jump from slice to slice; the mediastinum does not
    edge = ndimage.gaussian_filter1d(edge, 8 / grid_mm[0])
    outward = np.clip((columns - edge[:, None]) * grid_mm[2] / 5, 0, 1)
    weights: Voxels = (reach * outward[:, None, :]).astype(np.float32)
    return weights
