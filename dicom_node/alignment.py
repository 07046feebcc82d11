"""Volume -> place and pose of a protocol's template, and whether it got there.

A template is one volume: an atlas, or a subject of the batch itself, which `medoid` chooses. What
`registration` found is judged by limits, because an optimiser always ends somewhere: a study that
lies crooked would be scored as anomalous all over. What fails is refused with the criterion, its
value and its limit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node import nifti, registration
from dicom_node.errors import EmptyForeground, RegistrationFailed, SeriesRejected

Floats = NDArray[np.float64]
#: 6 degrees of freedom; 12; 12 to the template of an atlas file
Kind = Literal["rigid", "affine", "atlas"]


@dataclass(frozen=True, slots=True)
class Template:
    """The space to which the subjects of a protocol are brought."""

    #: (depth, height, width) float32
    voxels: NDArray[np.float32]
    #: (4, 4) index -> LPS mm
    affine: Floats
    #: (depth, height, width) bool, found as that of the subjects is: `make_template`
    foreground: NDArray[np.bool_]

    def digest(self) -> str:
        """Return the SHA-256 of voxels and place: subjects of two templates lie in two spaces."""
        whole = hashlib.sha256(np.ascontiguousarray(self.voxels).tobytes())
        whole.update(np.ascontiguousarray(self.affine).tobytes())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where a volume lies, seen from the template."""

    #: (4, 4) float64, template LPS mm -> source LPS mm
    to_source: Floats
    #: normalised mutual information in and around the template's foreground, 0 to 1
    metric: float
    #: volume in the source of a unit of volume in the template
    determinant: float
    #: Dice coefficient of the moved foreground and the template's, on the template's grid
    overlap: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a registration must reach.

    The figures were measured with T1-weighted heads of 20 subjects (IXI, 2 mm) brought to one more;
    7 of them also displaced by up to 30 degrees about each axis, 40 mm and 15 % of scale.
    """

    #: least normalised mutual information. Affine, heads reach 0.19 and more; flipped front to back
    #: or upside down 0.13 at most. Rigid, five heads reach 0.148 and more; one flipped front to
    #: back 0.122. Other contrasts were not measured
    metric: float
    #: least Dice coefficient of the foregrounds. Affine, heads reach 0.935 and more; halves of
    #: heads 0.81 at most, heads without skull 0.46. Rigid, five heads reach 0.857 and more,
    #: since heads differ in size by a quarter of their volume
    overlap: float
    #: least and largest change of volume: 0.68 to 0.97 as they lie, times 0.61 to 1.52
    determinant: tuple[float, float] = (0.4, 2.5)
    #: largest lengthening or shortening of any direction, as a factor: up to 1.23
    stretch: float = 1.5
    #: largest rotation: three turns by 30 degrees are at most 52, and heads differ by up to 15
    rotation_deg: float = 70.0
    #: most that the mirrored template may be ahead of the template, as a share of the metric: heads
    #: have it behind by 1.2 % to 11 %, with left and right exchanged ahead by 0.8 % to 11 %
    mirror: float = 0.005


LIMITS: dict[Kind, Limits] = {
    "rigid": Limits(metric=0.135, overlap=0.77),
    "affine": Limits(metric=0.15, overlap=0.87),
    "atlas": Limits(metric=0.15, overlap=0.87),
}


def align(
    voxels: NDArray[np.generic],
    affine: Floats,
    template: Template,
    kind: Kind,
    limits: Limits | None = None,
) -> Alignment:
    """Register (depth, height, width) voxels to the template and judge the result.

    Parameters
    ----------
    voxels
        Finite; of a CT in Hounsfield units, none below air.
    affine
        (4, 4), index of a voxel's centre -> LPS mm; axes may be oblique, left-handed and sheared.
    template
        Of the modality of the volume: across modalities the limits were not measured.
    kind
        "rigid" has 6 degrees of freedom, "affine" and "atlas" have 12.
    limits
        Those of `LIMITS` for the kind where None.

    Raises
    ------
    EmptyForeground
        All voxels have one value, or some are not finite.
    RegistrationFailed
        A limit is not kept; its ``criterion``, ``value`` and ``limit`` say which.
    """
    kept = limits or LIMITS[kind]
    try:
        fixed = registration.pyramid(template.voxels, template.affine, template.foreground)
        mask = registration.foreground_mask(voxels, affine)
        moving = registration.pyramid(voxels, affine, mask)
        found = registration.register(fixed, moving, affine=kind != "rigid")
    except ValueError as error:
        raise EmptyForeground(f"the volume cannot be registered: {error}") from error
    except RuntimeError as error:  # ITK's: nothing of one is left inside the other
        raise _failure("overlap", 0.0, kept.overlap, "they do not overlap") from error
    determinant = float(np.linalg.det(found.to_moving[:3, :3]))
    result = Alignment(found.to_moving, found.similarity, determinant, found.dice)
    _judge(result, found.mirror_lead, kept)
    return result


def _judge(found: Alignment, mirror_lead: float, limits: Limits) -> None:
    """Raise RegistrationFailed for the first limit that is not kept."""
    stretch, angle_deg = _stretch_and_angle(found.to_source[:3, :3])
    at_least = (
        ("determinant", found.determinant, limits.determinant[0], "it had to be made too small"),
        ("overlap", found.overlap, limits.overlap, "a part is missing, or it is another one"),
        ("metric", found.metric, limits.metric, "the two do not look alike"),
    )
    at_most = (
        ("determinant", found.determinant, limits.determinant[1], "it had to be made too large"),
        ("stretch", stretch, limits.stretch, "it had to be pulled out of shape"),
        ("rotation_deg", angle_deg, limits.rotation_deg, "it had to be turned over"),
        ("mirror", mirror_lead, limits.mirror, "left and right look exchanged"),
    )
    for criterion, value, limit, why in at_least:
        if value < limit:
            raise _failure(criterion, value, limit, why)
    for criterion, value, limit, why in at_most:
        if value > limit:
            raise _failure(criterion, value, limit, why)


def _stretch_and_angle(linear: Floats) -> tuple[float, float]:
    """(3, 3) -> largest factor along any direction, at least 1; rotation in degrees."""
    left, factors, right = np.linalg.svd(linear)
    stretch = max(factors[0], 1.0 / max(factors[-1], 1e-9))
    cosine = np.clip((np.trace(left @ right) - 1.0) / 2.0, -1.0, 1.0)
    return float(stretch), float(np.degrees(np.arccos(cosine)))


def _failure(criterion: str, value: float, limit: float, why: str) -> RegistrationFailed:
    """Return the error that names the criterion, its value and its limit."""
    return RegistrationFailed(
        f"the volume cannot be brought to the protocol's template: {why} ({criterion} {value:.3f}, "
        f"limit {limit:.3f}); look at body part, coverage and orientation of the series. If they "
        'are right, another template is needed, or alignment = "none"',
        criterion=criterion,
        value=value,
        limit=limit,
    )


def make_template(voxels: NDArray[np.generic], affine: Floats) -> Template:
    """Make a template of a volume; arguments as of `align`, of which it raises EmptyForeground."""
    try:
        mask = registration.foreground_mask(voxels, affine)
    except ValueError as error:
        raise EmptyForeground(f"the volume cannot be a template: {error}") from error
    return Template(np.asarray(voxels, np.float32), np.asarray(affine, np.float64), mask)


def template_from_nifti(path: Path) -> Template:
    """Read a template file.

    Raises
    ------
    IrregularGeometry, UnsupportedPixels
        As `nifti.read` does; the message names the file.
    EmptyForeground
        All voxels have one value.
    """
    try:
        source = nifti.read(path)
        return make_template(source.voxels, source.affine)
    except SeriesRejected as error:
        raise type(error)(f"template {path}: {error}") from error


def medoid(pairwise: NDArray[np.floating]) -> int:
    """(n, n) symmetric dissimilarities -> index of the subject with the least median to the others.

    The median, not the mean: one odd subject must not decide who is typical. The first of equals.
    Raises ValueError for what is no such matrix.
    """
    matrix = np.asarray(pairwise, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"dissimilarities must be (n, n) with n of at least 1, not {matrix.shape}")
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise ValueError("dissimilarities must be finite and symmetric")
    n = len(matrix)
    if n == 1:
        return 0
    others = matrix[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return int(np.argmin(np.median(others, axis=1)))
