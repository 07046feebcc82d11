"""One chest, scanned as another subject would be: shape, breath, dose and kernel.

Sizes are drawn within what patients and protocols differ by. What is drawn for one subject depends
on its generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from dicom_node.demo.chest_template import GRID_MM, HU_RANGE, Chest
from dicom_node.demo.fields import smooth_field

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: the chest narrows from front to back as the diaphragm rises, per mm
_RIBS_PER_MM = 0.001
#: standard deviation along each axis, and smoothness, of the two deformations: organs, vessels
_DEFORMATIONS = ((2.5, 15.0), (0.7, 6.0))
#: of the softest kernel, and of what an unsharp mask takes its details from
_KERNEL_MM = 1.2
#: details that the sharpest kernel adds
_UNSHARP = 0.6
#: what protocols are set to
_NOISE_HU = (8.0, 30.0)


@dataclass(frozen=True, slots=True)
class Scan:
    """How one subject was scanned."""

    #: of the diaphragm from where it was in the source, towards the head: exhaled above 0
    breath_mm: float
    #: standard deviation in water
    noise_hu: float
    #: -1 the softest kernel, 1 the sharpest
    sharpness: float


@dataclass(frozen=True, slots=True)
class Posed:
    """A chest in another shape and breath, not yet scanned."""

    #: (depth, height, width) HU
    voxels: Voxels
    lungs: Mask
    parenchyma: Mask
    #: (4, 4) index -> LPS mm
    affine: NDArray[np.float64]


def draw_scan(random: np.random.Generator) -> Scan:
    """Draw breath, dose and kernel: a sharp kernel is noisier at the same dose."""
    sharpness = random.uniform(-1, 1)
    noise = random.uniform(10, 22) * np.exp(0.35 * sharpness)
    return Scan(random.uniform(-8, 20), float(np.clip(noise, *_NOISE_HU)), sharpness)


def pose(chest: Chest, breath_mm: float, random: np.random.Generator) -> Posed:
    """Deform, scale, turn and shift the chest, and let it breathe.

    The lung keeps its mass: where breathing makes a volume smaller its tissue is denser by the same
    factor, HU + 1000 being proportional to density.

    Parameters
    ----------
    breath_mm
        Of the diaphragm towards the head; it falls to nothing at the apex.

    Returns
    -------
    As many slices as the source covers: what it does not show is not made up.
    """
    at = _shape(chest.voxels.shape, random)
    density = _breathe(at, chest.lungs, breath_mm)
    # most of such a slice lies beyond the first or last one of the source
    middle = np.median(at[0], axis=(1, 2))
    covered = np.flatnonzero((middle >= 0) & (middle <= len(chest.voxels) - 1))
    kept = slice(covered[0], covered[-1] + 1)
    at, density = at[:, kept], density[kept]
    voxels = ndimage.map_coordinates(chest.voxels, at, order=1, mode="nearest")
    lungs, parenchyma = (
        ndimage.map_coordinates(mask.view(np.uint8), at, order=0, mode="nearest").view(bool)
        for mask in (chest.lungs, chest.parenchyma)
    )
    # vessels and airways are not squeezed: air has no density, tissue is left out by the ramp
    squeezed = lungs * np.clip((-500 - voxels) / 200, 0, 1)
    voxels += squeezed * (density - 1) * (voxels + 1000)
    affine = chest.affine.copy()
    affine[:3, 3] += kept.start * affine[:3, 0]
    return Posed(voxels, lungs, parenchyma, affine)


def scan_voxels(voxels: Voxels, scan: Scan, random: np.random.Generator) -> Voxels:
    """Return (depth, height, width) HU as the kernel shows them, with noise of the same kernel."""
    filtered = _through_kernel(voxels, scan.sharpness)
    filtered += scan.noise_hu * _noise(voxels.shape, scan.sharpness, random)
    scanned: Voxels = np.clip(filtered, *HU_RANGE, out=filtered)
    return scanned


def _shape(shape: tuple[int, ...], random: np.random.Generator) -> Voxels:
    """(3, depth, height, width) index in the source that another patient's voxel has."""
    grid = GRID_MM.astype(np.float32)
    centre = (np.array(shape, dtype=np.float32) - 1) / 2
    matrix = _rotation(random) * (random.uniform(0.94, 1.06) * random.uniform(0.98, 1.02, size=3))
    # mm about the centre, turned and scaled, and back to an index
    matrix = matrix * grid / grid[:, None]
    offset = centre - matrix @ centre + random.uniform(-5, 5, size=3) / grid
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    at = np.empty((3, *shape), dtype=np.float32)
    for row in range(3):
        terms = [np.float32(matrix[row, axis]) * axes[axis] for axis in range(3)]
        at[row] = terms[0] + terms[1] + terms[2] + np.float32(offset[row])
        for size_mm, smooth_mm in _DEFORMATIONS:
            field = smooth_field(shape, GRID_MM, smooth_mm, random)
            at[row] += np.float32(size_mm / grid[row]) * field
    return at


def _rotation(random: np.random.Generator) -> NDArray[np.float64]:
    """Return a rotation by up to 3 degrees about each axis."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(random.uniform(-3, 3, size=3))):
        one, two = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _breathe(at: Voxels, lungs: Mask, breath_mm: float) -> Voxels:
    """Move `at` in place as the diaphragm moves; return (depth, height, width) relative density.

    With t from 0 at the apex to 1 at the diaphragm, tissue moves by breath * (3t^2 - 2t^3): both
    ends are at rest relative to what lies beyond them.
    """
    depths = np.flatnonzero(lungs.any(axis=(1, 2)))
    # the dome, which is what moves, lies above the lowest tips of the lungs
    filled = np.cumsum(lungs.sum(axis=(1, 2)))
    dome = int(np.searchsorted(filled, 0.05 * filled[-1]))
    rise = breath_mm / float(GRID_MM[0])
    length = np.float32(depths[-1] - dome - rise)
    t = np.clip((depths[-1] - at[0]) / length, 0, 1)
    at[0] -= np.float32(rise) * t * t * (3 - 2 * t)
    squeeze = 1 + np.float32(rise / length) * 6 * t * (1 - t)
    # front to back, about the spine behind the lungs
    spine = np.float32(np.flatnonzero(lungs.any(axis=(0, 2)))[-1])
    narrower = np.float32(1 + _RIBS_PER_MM * breath_mm)
    at[1] = (at[1] - spine) * narrower + spine
    density: Voxels = squeeze * narrower
    return density


def _through_kernel(voxels: Voxels, sharpness: float) -> Voxels:
    """Blur in-plane below sharpness 0, add details above it."""
    sigma = _KERNEL_MM * (max(0.0, -sharpness) if sharpness < 0 else 1.0) / GRID_MM[1:]
    blurred: Voxels = ndimage.gaussian_filter(voxels, (0.0, *sigma))
    if sharpness >= 0:
        blurred = voxels + np.float32(_UNSHARP * sharpness) * (voxels - blurred)
    return blurred


def _noise(shape: tuple[int, ...], sharpness: float, random: np.random.Generator) -> Voxels:
    """(depth, height, width) noise of unit variance, correlated in-plane as the kernel makes it.

    Filtered back projection leaves a noise power of |f| * MTF(f)^2 (Riederer 1978); the MTF is that
    of the detector's cells, a Gaussian, and of `_through_kernel`.
    """
    rows = np.fft.fftfreq(shape[1], GRID_MM[1])
    columns = np.fft.rfftfreq(shape[2], GRID_MM[2])
    f = np.hypot(rows[:, None], columns)  # cycles per mm
    detector = np.exp(-2 * (np.pi * 0.6 * f) ** 2)
    width = _KERNEL_MM * (max(0.0, -sharpness) if sharpness < 0 else 1.0)
    gauss = np.exp(-2 * (np.pi * width * f) ** 2)
    mtf = gauss if sharpness < 0 else 1 + _UNSHARP * sharpness * (1 - gauss)
    spectrum = (np.sqrt(f) * detector * mtf).astype(np.float32)
    noise: Voxels = random.standard_normal(shape, dtype=np.float32)
    for plane in noise:
        plane[:] = fft.irfft2(fft.rfft2(plane) * spectrum, s=shape[1:])
    noise /= noise.std()
    return noise
