"""Series -> volume: voxels with patient geometry, only through highdicom's volume classes.

What cannot be one regular volume is refused with the reason that a scanner's operator needs: a
finding in the wrong place is worse than none. Nothing is repaired: no slice is interpolated, no
tilt is undone, no duplicate is chosen. Of the files the inbox has checked that they parse and hold
all their pixels, and nothing else.

This module and `objects` alone import highdicom, and its exceptions end here.

References
----------
PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (the same per frame), C.11.1 (Modality LUT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from dicom_node.errors import InconsistentSeries, IrregularGeometry, NotScorable, UnsupportedPixels

#: of air, in Hounsfield units
_AIR_HU = np.float32(-1000.0)
#: fewer slices make no volume: localizers and scouts
MIN_SLICES = 8

#: one instance per slice
_CLASSIC = {uid.CTImageStorage, uid.MRImageStorage}
#: all slices in one multi-frame instance
_ENHANCED = {
    uid.EnhancedCTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
}
#: PS3.3 C.7.6.2 for an instance; C.7.6.16.2 has the same attributes in a functional group per frame
_PLANE = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
#: voxels are what the scanner measured: only Modality LUT or Rescale (PS3.3 C.11.1) is applied. A
#: Real World Value Map would change the unit and refuse values outside its range; a presentation
#: LUT (MONOCHROME1) would turn HU upside down
_STORED_TO_MEASURED = {"apply_real_world_transform": False, "apply_presentation_lut": False}
#: what pydicom and highdicom raise on values that are damaged, missing, or make no volume
_LIBRARY_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(RuntimeError, NotImplementedError, OverflowError, np.linalg.LinAlgError),
)


@dataclass(frozen=True, slots=True)
class Volume:
    """One regular volume on the source grid.

    The axes of the arrays are named for an axial stack: depth runs from slice to slice, height down
    a column, width along a row, whatever the plane. The axes of the affine are perpendicular, and
    it may be left-handed (where an enhanced image stores its frames the other way round).
    """

    #: (depth, height, width) float32; rescale applied, so HU for CT
    voxels: NDArray[np.float32]
    #: (4, 4) float64, index (depth, height, width) -> LPS mm (PS3.3 C.7.6.2.1.1)
    affine: NDArray[np.float64]
    #: headers without pixel data: one per slice in the order of axis 0, or one for an enhanced
    #: image
    headers: tuple[Dataset, ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the (depth, height, width) voxel size, from centre to centre.

        Depth is the distance of neighbouring slices, not Slice Thickness.
        """
        depth, height, width = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(depth), float(height), float(width)


def not_below_air(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(depth, height, width) HU -> the same, nothing below air.

    Outside its field of view a CT is padded, often with values far below air (Pixel Padding Value,
    PS3.3 C.7.5.1.1.2): beside them a threshold would take the air for body.
    """
    return np.maximum(voxels, _AIR_HU)


def build(files: Sequence[Path]) -> Volume:
    """Read the instances of one series and stack them.

    Parameters
    ----------
    files
        All instances of the series, in any order; one multi-frame instance of an enhanced image.

    Returns
    -------
    Voxels as measured by the scanner, Modality LUT or Rescale applied: HU for CT, the vendor's
    arbitrary unit for MR. A Real World Value Map, a window and MONOCHROME1 change nothing.

    Raises
    ------
    NotScorable
        The SOP Class is none of CT and MR, or the images have no pixels, or colour.
    InconsistentSeries
        There is no instance, or SOP Class or matrix differ, or there are several enhanced images.
    IrregularGeometry
        A slice does not say where it lies, or the slices are too few, doubled, missing, not
        parallel, tilted, or otherwise no regular stack.
    UnsupportedPixels
        The pixels do not decode, or are not finite once rescaled.

    Notes
    -----
    Memory peaks at six times the 16-bit pixels: encoded, decoded, and twice as float32.
    """
    datasets: list[Dataset] = [pydicom.dcmread(path) for path in files]
    try:
        _check_consistent(datasets)
        if datasets[0].SOPClassUID in _ENHANCED:
            return _from_enhanced(datasets)
        return _from_slices(datasets)
    except _LIBRARY_ERRORS as error:
        raise _fault(error) from error


def _check_consistent(datasets: Sequence[Dataset]) -> None:
    """Refuse what is no CT or MR image, or not one acquisition."""
    # highdicom would stack most of this, or fail without saying which instance is unlike the others
    if not datasets:
        raise InconsistentSeries("the series has no instance on disk")
    classes = {uid.UID(ds.get("SOPClassUID") or "") for ds in datasets}
    names = ", ".join(sorted(known.name or "no SOP Class UID" for known in classes))
    if len(classes) > 1:
        raise InconsistentSeries(f"the series mixes SOP Classes: {names}")
    if not classes <= _CLASSIC | _ENHANCED:
        raise NotScorable(f"{names}: only CT and MR images are scored")
    if any("PixelData" not in ds for ds in datasets):
        raise NotScorable(f"{names} instances of the series hold no pixel data")
    for keyword in ("Rows", "Columns", "SamplesPerPixel"):
        values = {ds.get(keyword) for ds in datasets}
        if len(values) > 1:
            raise InconsistentSeries(
                f"{keyword} differs inside the series: {sorted(map(str, values))}"
            )
    if datasets[0].get("SamplesPerPixel", 1) != 1:
        raise NotScorable("the images are in colour; only monochrome CT and MR are scored")


def _check_size(n_slices: int) -> None:
    """Refuse what is too thin for a volume."""
    if n_slices < MIN_SLICES:
        raise IrregularGeometry(
            f"the series has {n_slices} slices; a volume needs at least {MIN_SLICES} "
            "(a localizer or scout: route only volume series here)"
        )


def _check_frame_of_reference(ds: Dataset) -> None:
    """Refuse an image whose positions are relative to nothing (PS3.3 C.7.4.1)."""
    if not ds.get("FrameOfReferenceUID"):
        raise IrregularGeometry(f"instance {ds.SOPInstanceUID} has no FrameOfReferenceUID")


def _from_slices(datasets: list[Dataset]) -> Volume:
    """Stack classic single-frame instances."""
    _check_size(len(datasets))
    for ds in datasets:
        _check_frame_of_reference(ds)
    planes = [_plane({keyword: ds.get(keyword) for keyword in _PLANE}, ds) for ds in datasets]
    _check_stack(planes)
    # wants equal orientation and pixel spacing, and each distance within 1 % of their mean
    geometry = hd.get_volume_from_series(datasets, dtype=np.float32, **_STORED_TO_MEASURED)
    places = _places(planes, geometry)
    return _volume(geometry, [datasets[places.index(index)] for index in range(len(datasets))])


def _from_enhanced(datasets: list[Dataset]) -> Volume:
    """Read one enhanced multi-frame image."""
    if len(datasets) != 1:
        raise InconsistentSeries(
            f"the series has {len(datasets)} multi-frame images, not one volume"
        )
    ds = datasets[0]
    _check_size(int(ds.get("NumberOfFrames") or 0))
    _check_frame_of_reference(ds)
    planes = [_frame_plane(ds, frame) for frame in ds.get("PerFrameFunctionalGroupsSequence") or []]
    _check_stack(planes)
    geometry = hd.Image.from_dataset(ds).get_volume(dtype=np.float32, **_STORED_TO_MEASURED)
    places = _places(planes, geometry)
    # highdicom orders the frames along the slice normal; many scanners store them the other way,
    # and results name a source frame by its number: axis 0 has to run as the frames are stored
    if places == list(range(len(places)))[::-1]:
        geometry = geometry.flip_spatial(0)
    elif places != list(range(len(places))):
        raise IrregularGeometry("the frames are not stored in the order of their positions")
    return _volume(geometry, [ds])


@dataclass(frozen=True, slots=True)
class _Plane:
    """Where one slice lies."""

    #: (3,) LPS mm, centre of the first pixel
    position: NDArray[np.float64]
    #: (2, 3) directions of a row and of a column
    axes: NDArray[np.float64]
    #: (2,) mm between rows, between columns
    spacing: NDArray[np.float64]


def _plane(values: Mapping[str, Sequence[float] | None], ds: Dataset) -> _Plane:
    """Read the attributes of one plane; refuse the first that is missing."""
    for keyword, value in values.items():
        if not value:
            raise IrregularGeometry(f"instance {ds.SOPInstanceUID} has no {keyword}")
    # of another number of values reshape makes a ValueError, and `build` a refusal
    position, axes, spacing = (np.asarray(values[keyword], float) for keyword in _PLANE)
    return _Plane(position.reshape(3), axes.reshape(2, 3), spacing.reshape(2))


def _frame_plane(ds: Dataset, frame: Dataset) -> _Plane:
    """Read the plane of a frame from its own functional groups, else from the shared ones.

    A macro stands in one of the two (PS3.3 C.7.6.16); some files have no shared groups at all.
    """
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = {
        keyword: frame.get(name) or shared.get(name) or [Dataset()]
        for keyword, name in _PLANE.items()
    }
    return _plane({keyword: items[0].get(keyword) for keyword, items in groups.items()}, ds)


def _check_stack(planes: Sequence[_Plane]) -> None:
    """Name what keeps the planes from being one regular stack; highdicom only says that it is none.

    Gross faults alone: highdicom then applies its own, narrower tolerance. Not so for the tilt, of
    which it takes 2.5 degrees for none: 6 mm over the height of a head.
    """
    axes = np.stack([plane.axes for plane in planes])  # (n, 2, 3)
    if np.ptp(axes, axis=0).max() > 0.01:
        raise IrregularGeometry("the slices are not parallel: ImageOrientationPatient differs")
    normal = np.cross(axes[0, 0], axes[0, 1])
    positions = np.stack([plane.position for plane in planes])  # (n, 3)
    # the median: it stays the true distance while fewer than half of the slices are at fault
    along = positions @ normal  # (n,)
    steps = np.diff(np.sort(along))  # (n - 1,)
    usual = float(np.median(steps))
    doubled = int(np.count_nonzero(steps < max(0.1 * usual, 1e-3)))
    if doubled:
        raise IrregularGeometry(
            f"{doubled} of {len(planes)} slices lie at the position of another: doubled instances, "
            "or several volumes (echoes, b-values, time points) in one series"
        )
    if steps.max() > 1.5 * usual:
        raise IrregularGeometry(
            f"slices are missing: neighbours lie up to {steps.max():.2f} mm apart, "
            f"most of them {usual:.2f} mm"
        )
    shift = positions - positions[along.argmin()]
    across = float(np.linalg.norm(shift - np.outer(shift @ normal, normal), axis=1).max())
    # the affine has no shear: half a pixel is as far as a slice may lie from where it says
    if across > planes[0].spacing.min() / 2:
        raise IrregularGeometry(
            f"the slices are shifted in their own plane by up to {across:.1f} mm over the stack: "
            "a gantry tilt, which is not corrected"
        )


def _places(planes: Sequence[_Plane], geometry: hd.Volume) -> list[int]:
    """Return which index of axis 0 each plane is, in the order given; highdicom keeps no order."""
    points = np.stack([np.append(plane.position, 1.0) for plane in planes])  # (n, 4)
    places = [round(float(at)) for at in (points @ np.linalg.inv(geometry.affine).T)[:, 0]]
    if sorted(places) != list(range(len(geometry.array))):
        raise IrregularGeometry("two slices of the series lie at one position")
    return places


def _fault(error: Exception) -> IrregularGeometry | UnsupportedPixels:
    """Name what stopped the library: the pixels or the geometry."""
    # the libraries raise ValueError and RuntimeError for either: only their words tell them apart
    text = str(error)
    if any(word in text.lower() for word in ("decode", "pixel data", "transfer syntax")):
        return UnsupportedPixels(f"the pixel data cannot be decoded: {text}")
    return IrregularGeometry(f"the slices do not make one regular volume: {text}")


def _volume(geometry: hd.Volume, ordered: Sequence[Dataset]) -> Volume:
    """Drop the pixels from the headers, which live as long as the volume; check the values."""
    voxels = np.ascontiguousarray(geometry.array, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise UnsupportedPixels("the pixel values are not finite after rescale")
    for ds in ordered:
        del ds.PixelData  # the library forgets its decoded copy with it
    return Volume(voxels, np.asarray(geometry.affine, dtype=np.float64), tuple(ordered))
