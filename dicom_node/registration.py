"""Registration of one volume to another, by mutual information from coarse to fine (SimpleITK).

The metric (Mattes et al. 2003) is maximised after a search over start poses. Nothing is judged
here: an optimiser always ends somewhere, and `alignment` says whether that is good enough.

This module alone imports SimpleITK. The same input gives the same result on any number of cores.
Inside, lengths are decimetres: a turn by one radian then moves the rim of a head about as far as a
shift by one unit, so that one step length serves both.

References
----------
D. Mattes et al., PET-CT image registration in the chest using free-form deformations, IEEE TMI 22
(2003). C. Studholme et al., An overlap invariant entropy measure of 3D medical image alignment,
Pattern Recognition 32 (1999), for why mutual information is normalised before it is compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813 - as its own manual has it
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float64]

_MM = 0.01
#: voxel edges of the three levels, coarse to fine
_EDGES_MM = (8.0, 4.0, 2.0)
#: places that are sampled for the metric, at most; a few thousand
#: are enough to move 12 numbers, and more than these only cost time
_N_SAMPLES = 15_000
#: background around the foreground that takes part: the outline tells a lot
_RIM_MM = 10.0
#: grey levels of the joint histograms
_BINS = 32
#: start poses about the foreground's centre: rotations up to 30 degrees are within reach of one of
#: them, and a centre that is off because the neck is cut elsewhere is within reach of a shift
_START_ANGLES_DEG = (-25.0, 0.0, 25.0)
_START_SHIFTS_MM = (-20.0, 20.0)
#: starts that are optimised; with 30 real heads the best four always ended in one place
_N_STARTS = 2


@dataclass(frozen=True, slots=True)
class Picture:
    """A volume at one spacing, in decimetres; arrays are (depth, height, width)."""

    image: sitk.Image
    #: (4, 4) index -> LPS dm
    affine: Floats
    #: foreground
    mask: NDArray[np.bool_]
    #: foreground and rim
    near: NDArray[np.bool_]
    #: grey level, 0 to _BINS - 1, not rounded
    levels: Floats


@dataclass(frozen=True, slots=True)
class Registration:
    """Where a volume lies, seen from the one it was registered to."""

    #: (4, 4) fixed LPS mm -> moving LPS mm
    to_moving: Floats
    #: normalised mutual information, 0 to 1, at about 4 mm
    similarity: float
    #: how much more alike the mirrored fixed volume is than the fixed volume, as a share
    mirror_lead: float
    #: Dice coefficient of the foregrounds over the grid of the fixed volume
    dice: float


def foreground_mask(voxels: NDArray[np.generic], affine: Floats) -> NDArray[np.bool_]:
    """(depth, height, width) -> mask of what is not air: above the noise, closed and filled.

    Half of Otsu's threshold above the least value keeps dark tissue, as the scoring's own mask
    does. Found at about 4 mm; its rim is as exact as that. Raises ValueError where all voxels have
    one value or some are not finite.
    """
    image = _image(voxels, affine)
    coarse = _shrunk(image, _EDGES_MM[1])
    values = sitk.GetArrayViewFromImage(coarse)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or low == high:
        raise ValueError("the volume holds NaN or infinite voxels, or one value only")
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(coarse)
    body = coarse > low + 0.5 * (otsu.GetThreshold() - low)
    radius = [max(1, round(6.0 * _MM / edge)) for edge in coarse.GetSpacing()]
    filled = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(body, radius, sitk.sitkBox))
    return _array(_resampled(filled, image)) > 0


def _image(array: NDArray[np.generic], affine: Floats) -> sitk.Image:
    """(depth, height, width) and index -> LPS mm -> image in decimetres; bool becomes uint8."""
    kind = np.uint8 if array.dtype == np.bool_ else np.float32
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=kind))
    # ITK indexes (width, height, depth); its direction may be sheared or left-handed
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetSpacing((spacing[::-1] * _MM).tolist())
    image.SetOrigin((affine[:3, 3] * _MM).tolist())
    return image


def _array(image: sitk.Image) -> NDArray[Any]:
    """Return the (depth, height, width) array of an image."""
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    return array


def _shrunk(image: sitk.Image, edge_mm: float) -> sitk.Image:
    """Return means of blocks of whole voxels, about `edge_mm` long."""
    factors = [max(1, round(edge_mm * _MM / edge)) for edge in image.GetSpacing()]
    return sitk.BinShrink(image, factors)


def _resampled(mask: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """Return the mask on another grid in the same space, by nearest neighbour."""
    return sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def pyramid(
    voxels: NDArray[np.generic], affine: Floats, mask: NDArray[np.bool_]
) -> tuple[Picture, Picture, Picture]:
    """Return the pictures at the three edges of `_EDGES_MM`."""
    image, foreground = _image(voxels, affine), _image(mask, affine)
    coarse, middle, fine = (_picture(_shrunk(image, edge), foreground) for edge in _EDGES_MM)
    return coarse, middle, fine


def _picture(image: sitk.Image, foreground: sitk.Image) -> Picture:
    """Complete a picture; raises ValueError where there is no foreground."""
    mask = _resampled(foreground, image)
    radius = [max(1, round(_RIM_MM * _MM / edge)) for edge in image.GetSpacing()]
    near = _array(sitk.BinaryDilate(mask, radius)) > 0
    if not near.any():
        raise ValueError("no foreground was found in the volume or in the template")
    values = _array(image).astype(np.float64)
    # a few very bright voxels must not take most of the grey levels
    low, high = np.percentile(values[near], [0.5, 99.5])
    levels = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0) * (_BINS - 1)
    return Picture(image, _affine(image), _array(mask) > 0, near, levels)


def _affine(image: sitk.Image) -> Floats:
    """Return (4, 4) index (depth, height, width) -> LPS dm."""
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3] = (direction * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


def _centre(picture: Picture) -> Floats:
    """Return (3,) LPS dm of the foreground's centroid; the rim's where it is too thin to count."""
    mask = picture.mask if picture.mask.any() else picture.near
    index = np.append(np.argwhere(mask).mean(axis=0), 1.0)
    centre: Floats = (picture.affine @ index)[:3]
    return centre


def _mirrored(picture: Picture) -> Picture:
    """Return the picture with left and right exchanged about its own centre."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 2.0 * _centre(picture)[0]
    affine = flip @ picture.affine
    image = sitk.Image(picture.image)
    direction = np.reshape(image.GetDirection(), (3, 3)) * [[-1.0], [1.0], [1.0]]
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return Picture(image, affine, picture.mask, picture.near, picture.levels)


def register(
    fixed: tuple[Picture, Picture, Picture],
    moving: tuple[Picture, Picture, Picture],
    *,
    affine: bool,
) -> Registration:
    """Register two volumes by 6 degrees of freedom, or by 12.

    Raises
    ------
    RuntimeError
        ITK's: the volumes parted while the optimiser moved them.
    """
    pose = _refined(fixed[1], moving[1], _coarsely_registered(fixed[0], moving[0]))
    if affine:
        pose = _refined(fixed[1], moving[1], _as_affine(pose))
    own = _similarity(fixed[1], moving[1], _matrix(pose))
    mirrored = _mirrored(fixed[1])
    other = _similarity(mirrored, moving[1], _matrix(_refined(mirrored, moving[1], pose)))
    found = _matrix(_optimised(fixed[2], moving[2], pose, step_mm=0.5))
    return Registration(
        _in_mm(found),
        _similarity(fixed[1], moving[1], found),
        other / max(own, 1e-9) - 1.0,
        _dice(fixed[1], moving[1], found),
    )


def _coarsely_registered(fixed: Picture, moving: Picture) -> sitk.Euler3DTransform:
    """Return the best of the start poses, after the most promising were optimised."""

    def likeness(pose: sitk.Transform) -> float:
        return _similarity(fixed, moving, _matrix(pose))

    promising = sorted(_starts(fixed, moving), key=likeness, reverse=True)[:_N_STARTS]
    tried = [_optimised(fixed, moving, pose, step_mm=4.0) for pose in promising]
    return max(tried, key=likeness)


def _starts(fixed: Picture, moving: Picture) -> Iterator[sitk.Euler3DTransform]:
    """Yield the start poses: 27 rotations, each at 7 shifts from centre upon centre."""
    centre = _centre(fixed)
    shift = _centre(moving) - centre
    offsets = [np.zeros(3), *(mm * _MM * axis for axis in np.eye(3) for mm in _START_SHIFTS_MM)]
    for angles in itertools.product(_START_ANGLES_DEG, repeat=3):
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        for offset in offsets:
            start = sitk.Euler3DTransform()
            start.SetCenter(centre.tolist())
            start.SetMatrix(turn.ravel().tolist(), 1e-6)
            start.SetTranslation((shift + offset).tolist())
            yield start


def _refined(fixed: Picture, moving: Picture, pose: sitk.Transform) -> sitk.Transform:
    """Return the pose optimised at the middle level."""
    return _optimised(fixed, moving, pose, step_mm=2.0)


def _as_affine(pose: sitk.Euler3DTransform) -> sitk.AffineTransform:
    """Return the same transform with 12 degrees of freedom."""
    affine = sitk.AffineTransform(3)
    affine.SetCenter(pose.GetCenter())
    affine.SetMatrix(pose.GetMatrix())
    affine.SetTranslation(pose.GetTranslation())
    return affine


def _optimised(
    fixed: Picture, moving: Picture, start: sitk.Transform, *, step_mm: float
) -> sitk.Transform:
    """Return the start pose moved to the nearest maximum of Mattes' mutual information.

    `step_mm` is the first step's length. Raises RuntimeError where the two no longer overlap.
    """
    method = sitk.ImageRegistrationMethod()
    # sums over parts of the volume differ in their last bit with how many there are
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    # regular with a fixed seed, which ITK uses to jitter the places within their voxels
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(min(1.0, _N_SAMPLES / int(fixed.near.sum())), 1)
    near = sitk.GetImageFromArray(fixed.near.astype(np.uint8))
    near.CopyInformation(fixed.image)
    method.SetMetricFixedMask(near)
    method.SetInterpolator(sitk.sitkLinear)
    # no scales: in decimetres none are needed, and ITK's own take a turn's gradient for a shift's
    method.SetOptimizerAsRegularStepGradientDescent(
        step_mm * _MM, minStep=0.01 * _MM, numberOfIterations=100, gradientMagnitudeTolerance=1e-8
    )
    pose = type(start)(start)
    method.SetInitialTransform(pose, inPlace=True)
    method.Execute(fixed.image, moving.image)
    return pose


def _matrix(pose: sitk.Transform) -> Floats:
    """Return (4, 4), template LPS dm -> source LPS dm."""
    matrix = np.eye(4)
    matrix[:3, 3] = pose.TransformPoint((0.0, 0.0, 0.0))
    for axis, unit in enumerate(np.eye(3)):
        matrix[:3, axis] = pose.TransformPoint(unit.tolist()) - matrix[:3, 3]
    return matrix


def _in_mm(to_source: Floats) -> Floats:
    """Return a (4, 4) map between spaces in decimetres for spaces in millimetres."""
    scaled = to_source.copy()
    scaled[:3, 3] /= _MM
    return scaled


def _moved(
    array: Floats, index: NDArray[np.int64], to_index: Floats, order: Literal[0, 1]
) -> Floats:
    """Sample an array at (n, 3) indices of another grid; 0 outside of it."""
    places = index @ to_index[:3, :3].T + to_index[:3, 3]
    return ndimage.map_coordinates(array, places.T, order=order, mode="constant", cval=0.0)


def _index_map(fixed: Picture, moving: Picture, to_source: Floats) -> Floats:
    """Return (4, 4), index of the template's picture -> index of the source's."""
    return np.asarray(np.linalg.solve(moving.affine, to_source @ fixed.affine), np.float64)


def _similarity(fixed: Picture, moving: Picture, to_source: Floats) -> float:
    """Return 2 I(A, B) / (H(A) + H(B)) over the template's foreground and rim, 0 to 1.

    What lies beyond the source counts as air: so a part that the source lacks costs.
    """
    index = np.argwhere(fixed.near)
    moved = _moved(moving.levels, index, _index_map(fixed, moving, to_source), order=1)
    rows, columns = (
        np.rint(levels).astype(np.int64) for levels in (fixed.levels[fixed.near], moved)
    )
    joint = np.bincount(rows * _BINS + columns, minlength=_BINS**2).reshape(_BINS, _BINS)
    marginals = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
    return 2.0 * (1.0 - _entropy(joint.ravel()) / marginals) if marginals else 0.0


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy of a histogram, nats."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _dice(fixed: Picture, moving: Picture, to_source: Floats) -> float:
    """Return the Dice coefficient of the foregrounds over the whole grid of the template."""
    index = np.argwhere(np.ones_like(fixed.mask))
    to_index = _index_map(fixed, moving, to_source)
    moved = _moved(moving.mask.astype(np.float64), index, to_index, order=0) > 0
    own = fixed.mask.ravel()
    return float(2.0 * (moved & own).sum() / max(1, moved.sum() + own.sum()))
