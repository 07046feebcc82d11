"""Where the slices of a series lie, and what keeps them from being one regular stack.

References
----------
PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (the same per frame of an enhanced image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.arrival import GAP
from dicom_node.errors import IrregularGeometry

#: PS3.3 C.7.6.2 for an instance; C.7.6.16.2 has the same attributes in a functional group per frame
_MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
#: components of parallel directions differ by less: half a degree
PARALLEL = 0.01
#: slices nearer to each other than this share of the usual distance, or this many mm, are at one
#: place
_SAME_SHARE = 0.1
_SAME_MM = 1e-3


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one slice lies."""

    #: (3,) LPS mm, centre of the first pixel
    position: NDArray[np.float64]
    #: (2, 3) directions of a row and of a column
    axes: NDArray[np.float64]
    #: (2,) mm between rows, between columns
    spacing: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Return the (3,) direction of the slice normal."""
        return np.cross(self.axes[0], self.axes[1])


def of_instance(ds: Dataset) -> Plane:
    """Read the plane of a single-frame instance; raises IrregularGeometry where it is incomplete.

    Of another number of values it raises ValueError.
    """
    return _plane({keyword: ds.get(keyword) for keyword in _MACROS}, ds)


def of_frame(ds: Dataset, frame: Dataset) -> Plane:
    """Read the plane of a frame from its own functional groups, else from the shared ones.

    A macro stands in one of the two (PS3.3 C.7.6.16); some files have no shared groups at all.
    Raises as `of_instance` does.
    """
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = {
        keyword: frame.get(name) or shared.get(name) or [Dataset()]
        for keyword, name in _MACROS.items()
    }
    return _plane({keyword: items[0].get(keyword) for keyword, items in groups.items()}, ds)


def _plane(values: Mapping[str, Sequence[float] | None], ds: Dataset) -> Plane:
    """Make a plane of its attributes; refuse the first that is missing."""
    for keyword, value in values.items():
        if not value:
            raise IrregularGeometry(f"instance {ds.get('SOPInstanceUID')} has no {keyword}")
    # of another number of values reshape makes a ValueError, and `volume.build` a refusal
    position, axes, spacing = (np.asarray(values[keyword], float) for keyword in _MACROS)
    return Plane(position.reshape(3), axes.reshape(2, 3), spacing.reshape(2))


def places(planes: Sequence[Plane]) -> list[int]:
    """Return the place of each of parallel planes along their normal, 0, 1, ...; equal at one.

    Planes are at one place where they are nearer than a tenth of the usual distance.
    """
    along = np.stack([plane.position for plane in planes]) @ planes[0].normal  # (n,)
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])  # (n - 1,)
    moves = steps[steps > _SAME_MM]
    # the median: it stays the true distance while fewer than half of the slices are at fault
    nearest = max(_SAME_SHARE * float(np.median(moves)), _SAME_MM) if moves.size else _SAME_MM
    ranks = np.concatenate([[0], np.cumsum(steps >= nearest)])  # (n,)
    found = np.empty(len(planes), int)
    found[order] = ranks
    return [int(place) for place in found]


def check_parallel(planes: Sequence[Plane]) -> None:
    """Raise IrregularGeometry unless the planes are parallel."""
    axes = np.stack([plane.axes for plane in planes])  # (n, 2, 3)
    if np.ptp(axes, axis=0).max() > PARALLEL:
        raise IrregularGeometry("the slices are not parallel: ImageOrientationPatient differs")


def check_stack(planes: Sequence[Plane]) -> None:
    """Name what keeps parallel planes, none at the place of another, from being a regular stack.

    Gross faults alone: highdicom then applies its own, narrower tolerance. Not so for the tilt, of
    which it takes 2.5 degrees for none: 6 mm over the height of a head. Raises IrregularGeometry.
    """
    normal = planes[0].normal
    positions = np.stack([plane.position for plane in planes])  # (n, 3)
    along = positions @ normal  # (n,)
    steps = np.diff(np.sort(along))  # (n - 1,)
    usual = float(np.median(steps))
    if steps.max() > GAP * usual:
        raise IrregularGeometry(
            f"slices are missing: neighbours lie up to {steps.max():.2f} mm apart, "
            f"most of them {usual:.2f} mm"
        )
    shift = positions - positions[along.argmin()]
    across = np.linalg.norm(shift - np.outer(shift @ normal, normal), axis=1)  # (n,)
    # the affine has no shear: half a pixel is as far as a slice may lie from where it says
    if across.max() > planes[0].spacing.min() / 2:
        degrees = np.degrees(np.arctan2(across.max(), np.ptp(along)))
        raise IrregularGeometry(
            f"the slices are shifted in their own plane by up to {across.max():.1f} mm over the "
            f"stack: a gantry tilt of {degrees:.1f} degrees, which is not corrected"
        )
