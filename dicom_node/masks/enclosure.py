"""What two aerated lungs enclose, by geometry alone: masses at mediastinum and wall, filled lobes.

Everything is on the grid of the lung mask: (D, H, W), 2.5 mm, towards feet, back and left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk  # noqa: N813 - as its own manual has it
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

#: edge of a voxel of the grid
GRID_MM = 2.5

#: spans vessels, fissures and nodules
_CLOSING_MM = 10.0
#: highest mass that is known by lung above and below it; hearts are higher
_MASS_MM = 80.0
#: of a filling from this half width on, a rim is added: its borders are chords
_DEEP_MM = 6.0
_RIM_MM = 6.0
#: of the smaller lung to the larger, in area around a slice; healthy pairs stay above a half
_MISSING = 0.4
_SLAB_MM = 10.0
#: half the thickness by which healthy lungs differ: one diaphragm is higher, chests are turned
_UNLIKE_MM = 10.0
#: half the width of trachea, spine and aorta
_CENTRAL_MM = 30.0
#: bins of direction around the middle of the chest
_N_ANGLES = 360
_GAP_BINS = 6


def enclose(lungs: Sequence[Mask], bone: Mask, body: Mask, middle: tuple[float, float]) -> Mask:
    """Fill two (D, H, W) lungs with what they enclose.

    Parameters
    ----------
    lungs
        What is aerated of the one at low and the one at high x; one of them may be empty.
    bone, body
        Bone is never lung, nor is what lies outside the body, or outside the ribs.
    middle
        (row, column) of the middle of the chest.
    """
    forbidden = bone | ~body
    closed = [_closed(lung, _CLOSING_MM) for lung in lungs]
    grown = [_grown(own, middle) for own in closed]
    # neither takes the other's air, nor closes over what it may not have
    full = [
        _closed(own & ~other & ~forbidden, _CLOSING_MM)
        for own, other in zip(grown, closed[::-1], strict=True)
    ]
    right, left = full
    forbidden |= ~_inside_ribs(bone, middle)
    # the mirror image of the right lung reaches into the heart, and that lies in front
    heart = np.arange(right.shape[1])[:, None] < middle[0]
    central = np.abs(np.arange(right.shape[2]) - middle[1]) < _CENTRAL_MM / GRID_MM
    more_right = _mirrored(right, left, middle[1], central[None]) & ~left
    more_left = _mirrored(left, right, middle[1], central | heart) & ~right
    more = (more_right | more_left) & ~forbidden
    return ((right | left) & ~bone & body) | more | lungs[0] | lungs[1]


def _grown(lung: Mask, middle: tuple[float, float]) -> Mask:
    """(D, H, W) closed lung -> the same with the masses that it encloses."""
    grown = lung | _between(lung)
    grown |= _hulls(grown) & _beyond(grown, middle)
    return grown | _around_cores(grown & ~lung, _DEEP_MM)


def _between(lung: Mask) -> Mask:
    """(D, H, W) -> what has the lung above and below it, not further apart than a mass is high."""
    level = np.arange(len(lung), dtype=np.float32)[:, None, None]
    above = np.maximum.accumulate(np.where(lung, level, -np.inf), axis=0)
    below = np.minimum.accumulate(np.where(lung, level, np.inf)[::-1], axis=0)[::-1]
    return np.asarray(below - above <= _MASS_MM / GRID_MM)


def _hulls(lung: Mask) -> Mask:
    """(D, H, W) -> union of the convex hulls of its axial, coronal and sagittal slices."""
    out = lung.copy()
    for axis in range(3):
        planes, target = np.moveaxis(lung, axis, 0), np.moveaxis(out, axis, 0)
        for index in np.flatnonzero(planes.any((1, 2))):
            target[index] |= _hull(planes[index])
    return out


def _beyond(lung: Mask, middle: tuple[float, float]) -> Mask:
    """(D, H, W) -> what lies behind all of the lung, as seen from the middle of the chest.

    That is the chest wall and what is attached to it. Seen from the front too, in the posterior
    half: where a mass reaches from the wall to the mediastinum, no lung lies between.
    """
    radius, angle = _polar(lung.shape[1:], middle)
    rows = np.arange(lung.shape[1])[:, None]
    out = np.zeros_like(lung)
    for index in np.flatnonzero(lung.any((1, 2))):
        plane = lung[index]
        furthest = np.zeros(_N_ANGLES)
        np.maximum.at(furthest, angle[plane], radius[plane])
        furthest[furthest == 0] = np.inf
        out[index] = (radius > furthest[angle]) & (radius < 2 * furthest[angle])
        lowest = np.where(plane, rows, -1).max(0)  # W
        out[index] |= (rows > lowest) & (lowest >= 0) & (rows > middle[0])
    return out


def _around_cores(mask: Mask, depth_mm: float) -> Mask:
    """(D, H, W) -> what lies around the parts of the mask deeper than that, with a rim.

    Balls of that radius, and a rim beyond them: a hull spans a mass with a chord, and the wall
    behind it is curved.
    """
    cores = ndimage.distance_transform_edt(mask, GRID_MM) > depth_mm
    if not cores.any():  # there is no distance to nothing
        return cores
    return np.asarray(ndimage.distance_transform_edt(~cores, GRID_MM) <= depth_mm + _RIM_MM)


def _polar(shape: tuple[int, ...], middle: tuple[float, float]) -> tuple[Floats, NDArray[np.intp]]:
    """Return (H, W) distance from the middle in voxels, and the bin of the direction."""
    rows, columns = np.indices(shape)
    down, across = rows - middle[0], columns - middle[1]
    turn = (np.arctan2(down, across) / (2 * np.pi)) % 1.0
    return np.hypot(down, across), (turn * _N_ANGLES).astype(np.intp) % _N_ANGLES


def _hull(plane: Mask) -> Mask:
    """(H, W), not empty -> its convex hull."""
    rows = np.flatnonzero(plane.any(1))
    first = plane[rows].argmax(1)
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(1)
    # the corners of the pixels: the hull of a single pixel is that pixel
    points = np.array(
        [
            (r + dr, c + dc)
            for r, a, b in zip(rows, first, last, strict=True)
            for dr in (-0.5, 0.5)
            for c, dc in ((a, -0.5), (b, 0.5))
        ]
    )
    sides = ConvexHull(points).equations  # n 3
    out = np.zeros_like(plane)
    box = slice(rows[0], rows[-1] + 1), slice(first.min(), last.max() + 1)
    grid = np.mgrid[box].reshape(2, -1)  # 2 n
    inside = (sides[:, :2] @ grid + sides[:, 2:] <= 1e-9).all(0)
    out[box] = inside.reshape(out[box].shape)
    return out


def _mirrored(own: Mask, other: Mask, column: float, doubtful: Mask) -> Mask:
    """(D, H, W) -> what a lung lacks of the other's mirror image, where that is much.

    Nothing in the `doubtful` part, unless the lung is nearly missing in the whole slice: of a lung
    that is not there, no border is known.
    """
    lacking = _flip(other, column) & ~own
    own_area, other_area = (
        ndimage.gaussian_filter1d(mask.sum((1, 2)).astype(float), _SLAB_MM / GRID_MM)
        for mask in (own, other)
    )
    missing = (own_area < _MISSING * other_area)[:, None, None]
    lacking &= missing | ~doubtful
    return lacking & (missing | _around_cores(lacking, _UNLIKE_MM))


def _inside_ribs(bone: Mask, middle: tuple[float, float]) -> Mask:
    """(D, H, W) -> what is nearer to the middle of the chest than bone in the same direction.

    Of an axial slice and those 10 mm above and below, and of directions within 6 degrees: ribs
    slant, leave gaps in a slice, and the thin ones among them are hardly bone at this resolution.
    """
    radius, angle = _polar(bone.shape[1:], middle)
    nearest = np.full((len(bone), _N_ANGLES), np.inf)
    for index, plane in enumerate(bone):
        np.minimum.at(nearest[index], angle[plane], radius[plane])
    reach = 2 * round(_SLAB_MM / GRID_MM) + 1, 2 * _GAP_BINS + 1
    nearest = ndimage.minimum_filter(nearest, reach, mode=("nearest", "wrap"))
    return np.stack([radius < limit[angle] for limit in nearest])


def _flip(mask: Mask, column: float) -> Mask:
    """(D, H, W) -> mirrored about a column; what leaves the grid is lost."""
    source = np.rint(2 * column - np.arange(mask.shape[2])).astype(int)
    valid = (source >= 0) & (source < mask.shape[2])
    return np.asarray(mask[:, :, source.clip(0, mask.shape[2] - 1)] & valid)


def _closed(mask: Mask, radius_mm: float) -> Mask:
    """(D, H, W) -> closed by a ball; what is dilated beyond the border comes back."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    radius = round(radius_mm / GRID_MM)
    padded = sitk.ConstantPad(image, [radius + 1] * 3, [radius + 1] * 3, 0)
    closed = sitk.BinaryMorphologicalClosing(padded, [radius] * 3, sitk.sitkBall)
    inner = slice(radius + 1, -radius - 1)
    return np.asarray(sitk.GetArrayFromImage(closed)[inner, inner, inner].astype(bool))
