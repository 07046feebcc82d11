"""Lungs of a chest CT: threshold, morphology and geometry; no atlas and no network.

A threshold alone finds air, and so loses what is looked for: a tumour at the pleura is as dense as
the wall that it touches. The mask is therefore what the lungs enclose, not what they contain:

1. air inside the body, without trachea, main bronchi and bowel gas;
2. left and right, each closed by 10 mm: vessels, fissures, nodules;
3. what has the lung above and below it, no more than 80 mm apart: masses at the mediastinum. The
   diaphragm has no lung below it, and of the heart only an edge has;
4. what lies in the convex hull of a lung's slices and behind the lung as seen from the middle of
   the chest: masses at the chest wall;
5. where one lung is nearly missing beside the other, the other's mirror image: a filled lobe.

Bone is left out. All of it happens on a grid of 2.5 mm. What is dense and grows out of mediastinum
or diaphragm without lung around it looks like them, and is left out too.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813 - as its own manual has it
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.masks.enclosure import GRID_MM, enclose

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
HU = NDArray[np.float32]

_ML = GRID_MM**3 / 1000
#: HU; aerated lung lies at -900 to -600, fat at -100
_AIR = -400.0
_TISSUE = -300.0
#: HU; bone, calcium and dense contrast medium
_BONE = 150.0
#: a smaller dense part is calcium in a lesion or vessel, and no rib
_MIN_BONE_ML = 2.0
#: HU, mean inside: bowel gas has no vessels in it; lung has, even in emphysema
_GAS = -960.0
#: of all aerated lung: the sinuses of a head are smaller, a child's lungs are not
_MIN_LUNGS_ML = 300.0
#: smaller islands of air are cut-off bronchi, or gas
_MIN_PART_ML = 20.0
#: of an axial section; a main bronchus is smaller than a trachea
_TRACHEA_MM2 = (50.0, 700.0)
_TRACHEA_OFF_MIDDLE_MM = 30.0
#: below the highest air in the body
_TRACHEA_START_MM = 80.0
#: share of a part beyond the middle from which on it is both lungs in one
_JOINED = 0.2
#: half the width of the widest bridge between the lungs that is cut where it is narrowest
_BRIDGE_MM = 20.0
_MARGIN_MM = 20.0
#: of the smaller lung to the larger, in volume: both reach the wall somewhere
_SYMMETRIC = 0.3


def lung_mask(voxels_hu: HU, affine: Floats) -> Mask:
    """(depth, height, width) HU -> mask of both lungs with what is dense in them.

    Parameters
    ----------
    voxels_hu
        Finite; of a chest CT in any orientation, also cut off above or below.
    affine
        (4, 4), index (depth, height, width) -> LPS mm.

    Raises
    ------
    ValueError
        The volume is no CT, holds no lungs, or has values or an affine that are not numbers.
    """
    _check(voxels_hu, affine)
    hu, to_source = _on_grid(voxels_hu, affine)
    body = _body(hu)
    air = (hu < _AIR) & body
    aerated = _aerated(hu, air & ~_trachea(air, float(np.nonzero(body)[2].mean())))
    full = np.zeros_like(aerated)
    box = _box(aerated, _middle(body, aerated))
    row, column = _middle(body[box], aerated[box])
    lungs = _split(aerated[box], column)
    middle = row, _between_walls(lungs, column)
    full[box] = enclose(lungs, _bone(hu)[box], body[box], middle)
    back = np.linalg.inv(to_source)
    # the grid ends up to a voxel before the source does: what it has there goes on
    sampled = ndimage.affine_transform(
        full.astype(np.float32), back[:3, :3], back[:3, 3], voxels_hu.shape, order=1, mode="nearest"
    )
    return np.asarray(sampled > 0.5)


def _check(voxels: HU, affine: Floats) -> None:
    """Refuse what cannot be a CT in Hounsfield units."""
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise ValueError(f"a lung mask needs a volume; the array has shape {voxels.shape}")
    if not np.isfinite(voxels).all():
        raise ValueError("the volume holds NaN or infinite voxels")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError("the affine of the volume has no inverse")
    if not (voxels < _AIR).any():
        raise ValueError(
            f"no voxel lies below {_AIR:.0f} HU (the lowest is {voxels.min():.0f}): this is no "
            "chest CT in Hounsfield units; lung masks are for CT alone"
        )


def _on_grid(voxels: HU, affine: Floats) -> tuple[HU, Floats]:
    """Resample to 2.5 mm; axes run towards feet (S to I), P and L, whatever the source's do.

    Returns the voxels, air outside the source, and the (4, 4) map of their index to the source's.
    """
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(voxels.shape) - 1)  # 8 3
    points = corners @ affine[:3, :3].T + affine[:3, 3]  # 8 3, LPS mm
    low, high = points.min(0), points.max(0)
    grid: Floats = np.zeros((4, 4))
    grid[2, 0], grid[1, 1], grid[0, 2] = -GRID_MM, GRID_MM, GRID_MM
    grid[:, 3] = low[0], low[1], high[2], 1.0
    shape = tuple(int(n) for n in ((high - low)[::-1] // GRID_MM + 1))
    to_source = np.asarray(np.linalg.solve(affine, grid), np.float64)
    sampled = ndimage.affine_transform(
        voxels,
        to_source[:3, :3],
        to_source[:3, 3],
        shape,
        order=1,
        mode="grid-constant",
        cval=-1000.0,
    )
    return sampled, to_source


def _body(hu: HU) -> Mask:
    """(D, H, W) -> the patient with all that the skin encloses; no table, blanket or tubes."""
    # opened by one voxel alone: the chest wall of a thin patient is few voxels thick
    body = _by_size(ndimage.binary_opening(hu > _TISSUE)) == 1
    # closed in the plane, or lung that a hole in the skin lets out is lost in the whole slice
    padded = sitk.GetImageFromArray(np.pad(body, ((0, 0), (3, 3), (3, 3))).astype(np.uint8))
    closed = sitk.GrayscaleMorphologicalClosing(padded, [3, 3, 0], sitk.sitkBox)
    planes: Mask = sitk.GetArrayFromImage(closed)[:, 3:-3, 3:-3]
    return np.stack([ndimage.binary_fill_holes(plane) for plane in planes])


def _trachea(air: Mask, middle: float) -> Mask:
    """(D, H, W) air in the body -> trachea and main bronchi, as far as walls part them from lung.

    Followed from slice to slice towards the feet, from where one is first seen near the column
    `middle`; a spot that grows beyond a trachea's area has leaked into a lung, and is left.
    """
    found = np.zeros_like(air)
    previous = np.zeros(air.shape[1:], bool)
    # further down, what is small and central is the edge of a lung on the diaphragm
    last_start = int(air.any((1, 2)).argmax()) + _TRACHEA_START_MM / GRID_MM
    for index, plane in enumerate(air):
        parts, _ = ndimage.label(plane)
        areas = np.bincount(parts.ravel()) * GRID_MM**2
        fits = (areas > _TRACHEA_MM2[0]) & (areas < _TRACHEA_MM2[1])
        fits[0] = False
        if previous.any():
            touched = np.zeros_like(fits)
            touched[parts[ndimage.binary_dilation(previous)]] = True
            previous = (fits & touched)[parts]
            if not previous.any():
                break
        elif index > last_start:
            break
        else:
            previous = _most_central(parts, fits, middle)
        found[index] = previous
    return found


def _most_central(parts: NDArray[np.integer], fits: Mask, middle: float) -> Mask:
    """(H, W) labels -> the one that fits and lies nearest to the middle, if within 30 mm of it."""
    best, distance = 0, _TRACHEA_OFF_MIDDLE_MM / GRID_MM
    for label in np.flatnonzero(fits):
        x = float(np.nonzero(parts == label)[1].mean())
        if abs(x - middle) < distance:
            best, distance = int(label), abs(x - middle)
    return np.asarray((parts == best) & (best > 0))


def _aerated(hu: HU, air: Mask) -> Mask:
    """(D, H, W) air without trachea -> aerated lung; ValueError where there is too little."""
    parts = _by_size(air)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    # at the border of gas, walls are mixed in; what is all border is too thin for bowel
    inner = ndimage.binary_erosion(air)
    total = np.bincount(parts[inner], hu[inner], minlength=len(sizes))
    means = total / np.maximum(np.bincount(parts[inner], minlength=len(sizes)), 1)
    aerated = ((sizes * _ML >= _MIN_PART_ML) & (means > _GAS))[parts]
    volume = float(aerated.sum() * _ML)
    if volume < _MIN_LUNGS_ML:
        raise ValueError(
            f"no lungs: {volume:.0f} ml of aerated lung in the body, at least {_MIN_LUNGS_ML:.0f} "
            "are wanted; lung masks are for chest CT alone"
        )
    return aerated


def _middle(body: Mask, aerated: Mask) -> tuple[float, float]:
    """Return (row, column) of the mediastinum: level with the lungs, in the middle of the body."""
    levels = aerated.any((1, 2))
    return float(np.nonzero(aerated)[1].mean()), float(np.nonzero(body[levels])[2].mean())


def _between_walls(lungs: list[Mask], column: float) -> float:
    """Return the column between the outer walls of two lungs; `column` where one is missing.

    Arms and breasts move the middle of the body, and ribs do not.
    """
    volumes = [int(lung.sum()) for lung in lungs]
    if min(volumes) < _SYMMETRIC * max(volumes):
        return column
    low, high = (np.flatnonzero(lung.any((0, 1))) for lung in lungs)
    return float(low[0] + high[-1]) / 2


def _split(aerated: Mask, middle: float) -> list[Mask]:
    """(D, H, W) -> masks of the part at low and the part at high x; bridges between them are cut.

    Eroded until no part lies on both sides of the middle; every voxel then goes with the nearest.
    """
    sides = _sides(aerated, middle)
    if sides is None:
        depth = ndimage.distance_transform_edt(aerated, GRID_MM)
        radii = np.arange(GRID_MM, _BRIDGE_MM, GRID_MM)
        parts = (_sides(depth > radius, middle) for radius in radii)
        seeds = next((found for found in parts if found is not None), None)
        if seeds is None:
            seeds = np.where(np.arange(aerated.shape[2]) > middle, 2, 1) * aerated
        nearest = ndimage.distance_transform_edt(
            seeds == 0, return_distances=False, return_indices=True
        )
        sides = np.where(aerated, seeds[tuple(nearest)], 0)
    return [sides == 1, sides == 2]


def _sides(mask: Mask, middle: float) -> NDArray[np.int_] | None:
    """(D, H, W) -> 1 for parts at low x and 2 for those at high x; None where one lies on both."""
    parts = _by_size(mask)
    sizes = np.bincount(parts.ravel())
    high = np.bincount(parts[:, :, int(middle) + 1 :].ravel(), minlength=len(sizes))
    share = high / np.maximum(sizes, 1)
    share[0] = 0.0
    # a lung may herniate across the middle: that alone makes no bridge
    if ((share > _JOINED) & (share < 1 - _JOINED)).any():
        return None
    sides = np.where(share > 0.5, 2, 1)
    sides[0] = 0
    return np.asarray(sides[parts])


def _box(aerated: Mask, middle: tuple[float, float]) -> tuple[slice, ...]:
    """(D, H, W) -> the part of the grid that can become lung: everything else only costs time."""
    margin = round(_MARGIN_MM / GRID_MM)
    depth, height, width = (np.flatnonzero(aerated.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    # as wide on both sides: a mirror image may lie where there is no air at all
    half = int(np.abs(width - middle[1]).max())
    low, high = round(middle[1]) - half - margin, round(middle[1]) + half + margin + 1
    return (
        slice(max(int(depth[0]) - margin, 0), int(depth[-1]) + margin + 1),
        slice(max(int(height[0]) - margin, 0), int(height[-1]) + margin + 1),
        slice(max(low, 0), high),
    )


def _bone(hu: HU) -> Mask:
    """(D, H, W) -> skeleton and whatever dense touches it; a calcified lesion is no bone."""
    parts = _by_size(hu > _BONE)
    return np.asarray((np.bincount(parts.ravel()) * _ML >= _MIN_BONE_ML)[parts] & (parts > 0))


def _by_size(mask: Mask) -> NDArray[np.int32]:
    """(D, H, W) -> parts that touch by faces, numbered from 1, the largest first; 0 is outside."""
    labels = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
    return np.asarray(sitk.GetArrayFromImage(sitk.RelabelComponent(labels)), np.int32)
