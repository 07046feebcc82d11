"""Series -> volume: voxels with patient geometry, only through highdicom's volume classes.

What cannot be one regular volume is refused with the reason that a scanner's operator needs: a
finding in the wrong place is worse than none. Nothing is repaired: no slice is interpolated, no
tilt is undone, no volume of several is chosen; a slice that came twice, alike in everything, is
taken once. Of the files the inbox has checked that they parse and hold all their pixels, and
nothing else.

This module and `objects` alone import highdicom, and its exceptions end here.

References
----------
PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (the same per frame), C.11.1 (Modality LUT).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicom_node import header, mosaic, several_volumes, slice_planes, source_pixels
from dicom_node.errors import (
    InconsistentSeries,
    IrregularGeometry,
    NotScorable,
    OwnResult,
    UnsupportedPixels,
)
from dicom_node.identity import is_own
from dicom_node.series import Series
from dicom_node.several_volumes import Traits
from dicom_node.slice_planes import Plane

_log = logging.getLogger(__name__)

#: of air, in Hounsfield units
_AIR_HU = np.float32(-1000.0)
#: fewer slices make no volume: localizers and scouts
MIN_SLICES = 8

_CT = {
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
}
#: one instance per slice
_CLASSIC = {uid.CTImageStorage, uid.MRImageStorage}
#: all slices in one multi-frame instance
_ENHANCED = {
    uid.EnhancedCTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
}
#: 1 - cosine of the angle by which slices may be rotated against each other, 0.03 degrees: senders
#: round the cosines of each slice by itself
_ORIENTATION_TOLERANCE = 1e-7
_MADE_BY = ("InstanceCreatorUID", "Manufacturer", "ManufacturerModelName")
#: voxels are what the scanner measured: only Modality LUT or Rescale (PS3.3 C.11.1) is applied. A
#: Real World Value Map would change the unit and refuse values outside its range; a presentation
#: LUT (MONOCHROME1) would turn HU upside down
_STORED_TO_MEASURED = {"apply_real_world_transform": False, "apply_presentation_lut": False}
#: what pydicom and highdicom raise on values that are damaged, missing, or make no volume
LIBRARY_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(RuntimeError, NotImplementedError, OverflowError, np.linalg.LinAlgError),
    *(BytesLengthException, InvalidDicomError),
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
    #: what of the series was left out, and why
    notes: tuple[str, ...] = ()

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


def build(files: Sequence[Path], frames: Sequence[int] = ()) -> Volume:
    """Read the instances of one series and stack them.

    Parameters
    ----------
    files
        All instances of the series, in any order; one multi-frame instance of an enhanced image.
        A slice that came twice, alike but for its SOP Instance UID, is taken once (`Volume.notes`).
    frames
        Numbers, ascending and from 1, of those frames of the multi-frame instance that are the
        volume; empty: all of them. The header is then that of an image which has these alone.

    Returns
    -------
    Voxels as measured by the scanner, Modality LUT or Rescale applied: HU for CT, the vendor's
    arbitrary unit for MR. A Real World Value Map, a window and MONOCHROME1 change nothing.

    Raises
    ------
    OwnResult
        A node made it, by what it says of its creator or equipment.
    NotScorable
        The SOP Class is none of CT and MR, or the images have no pixels, or colour.
    InconsistentSeries
        There is no instance, or SOP Class or matrix differ, or there are several enhanced images.
    IrregularGeometry
        A slice does not say where it lies, or the slices are too few, missing, not parallel,
        tilted, several at one place (it says what differs between them), the tiles of a mosaic, or
        otherwise no regular stack.
    UnsupportedPixels
        The pixels do not decode, or are not finite once rescaled, or their description lacks what
        cannot be derived.

    Notes
    -----
    Memory peaks at six times the 16-bit pixels: encoded, decoded, and twice as float32.
    """
    with unvalidated(), _panic_refused():
        try:
            datasets: list[Dataset] = [pydicom.dcmread(path) for path in files]
            check_images(datasets)
            _check_pixels(datasets)
            _check_no_mosaic(datasets)
            for ds in datasets:
                if frames:
                    source_pixels.keep_frames(ds, frames)
                source_pixels.prepare(ds)
            if datasets[0].SOPClassUID in _ENHANCED:
                return _from_enhanced(datasets)
            return _from_slices(datasets)
        except LIBRARY_ERRORS as error:
            raise _fault(error) from error
        except OSError as error:
            # pydicom raises it, without a number, for a sequence that cannot be parsed; a disk that
            # fails has one, and may be better at the next attempt
            if error.errno is not None:
                raise
            raise _fault(error) from error


def build_series(series: Series) -> Volume:
    """Stack a series, or the part of one that it stands for; raises as `build` does."""
    return build(series.files, series.part.frames if series.part else ())


@contextmanager
def unvalidated() -> Iterator[None]:
    """Read values as they are: a decimal string of 17 characters is a number all the same.

    Nor does the library then warn of values, in words that repeat them: some are a patient's.
    """
    with config.disable_value_validation():
        yield


@contextmanager
def _panic_refused() -> Iterator[None]:
    """Make the panic of a decoder written in Rust a refusal: it is no Exception, and ends a worker.

    Its class cannot be imported from anywhere (pyo3 makes it when it is raised first).
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UnsupportedPixels(f"the pixel data cannot be decoded: {error}") from error


def check_images(datasets: Sequence[Dataset]) -> None:
    """Refuse what is no CT or MR image, or not of one matrix, by the headers alone.

    Raises NotScorable, InconsistentSeries.
    """
    # highdicom would stack most of this, or fail without saying which instance is unlike the others
    if not datasets:
        raise InconsistentSeries("the series has no instance on disk")
    if any(is_own(*(str(ds.get(keyword) or "") for keyword in _MADE_BY)) for ds in datasets):
        raise OwnResult
    classes = {uid.UID(ds.get("SOPClassUID") or "") for ds in datasets}
    names = ", ".join(sorted(known.name or "no SOP Class UID" for known in classes))
    if len(classes) > 1:
        raise InconsistentSeries(f"the series mixes SOP Classes: {names}")
    if not classes <= _CLASSIC | _ENHANCED:
        raise NotScorable(f"{names}: only CT and MR images are scored")
    for keyword, usual in (("Rows", None), ("Columns", None), ("SamplesPerPixel", 1)):
        values = {ds.get(keyword) or usual for ds in datasets}
        if len(values) > 1:
            raise InconsistentSeries(
                f"{keyword} differs inside the series: {sorted(map(str, values))}"
            )
    if (datasets[0].get("SamplesPerPixel") or 1) != 1:
        raise NotScorable("the images are in colour; only monochrome CT and MR are scored")


def _check_pixels(datasets: Sequence[Dataset]) -> None:
    """Refuse headers alone."""
    if any("PixelData" not in ds for ds in datasets):
        name = uid.UID(datasets[0].SOPClassUID).name
        raise NotScorable(f"{name} instances of the series hold no pixel data")


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


def _check_no_mosaic(datasets: Sequence[Dataset]) -> None:
    """Refuse images of which each is a volume in tiles."""
    for ds in datasets:
        tiles = mosaic.n_tiles(ds)
        if tiles is not None:
            raise IrregularGeometry(
                f"the images are Siemens mosaics, {f'{tiles} slices' if tiles else 'all slices'} "
                "as tiles of one image, whose places no standard attribute gives: have the "
                "scanner or the PACS send single slices or enhanced images"
            )


def _from_slices(datasets: list[Dataset]) -> Volume:
    """Stack classic single-frame instances."""
    _check_size(len(datasets))
    for ds in datasets:
        _check_single_frame(ds)
        _check_frame_of_reference(ds)
    planes = [slice_planes.of_instance(ds) for ds in datasets]
    slice_planes.check_parallel(planes)
    dropped = set(several_volumes.copies(datasets, planes))
    notes = _note_of_copies(datasets, len(dropped))
    kept = [index for index in range(len(datasets)) if index not in dropped]
    datasets, planes = [datasets[index] for index in kept], [planes[index] for index in kept]
    _check_size(len(datasets))
    _check_single_volume(planes, map(several_volumes.traits_of, datasets))
    slice_planes.check_stack(planes)
    # wants equal pixel spacing, and each distance within 1 % of their mean
    geometry = hd.get_volume_from_series(
        datasets,
        dtype=np.float32,
        orientation_tol=_ORIENTATION_TOLERANCE,
        **_STORED_TO_MEASURED,
    )
    places = _places(planes, geometry)
    ordered = [datasets[places.index(index)] for index in range(len(datasets))]
    return _volume(geometry, ordered, notes)


def _check_single_frame(ds: Dataset) -> None:
    """Refuse several frames without functional groups: nothing says where each lies.

    One frame is the same as none named; results would refer to it by a number.
    """
    n_frames = int(ds.get("NumberOfFrames") or 1)
    if n_frames > 1:
        raise IrregularGeometry(
            f"instance {ds.SOPInstanceUID} has {n_frames} frames; its SOP Class has one"
        )
    if "NumberOfFrames" in ds:
        del ds.NumberOfFrames


def _note_of_copies(datasets: Sequence[Dataset], n_dropped: int) -> tuple[str, ...]:
    """Say what came twice, under two SOP Instance UIDs."""
    if not n_dropped:
        return ()
    note = (
        f"{n_dropped} of {len(datasets)} instances of series {datasets[0].SeriesInstanceUID} left "
        "out: each is a copy of another, under a SOP Instance UID of its own"
    )
    _log.warning(note)
    return (note,)


def _check_single_volume(planes: Sequence[Plane], traits: Iterable[Traits]) -> None:
    """Refuse slices at the place of another, with what differs between them."""
    doubled = len(planes) - len(set(slice_planes.places(planes)))
    if doubled:
        alike = several_volumes.at_one_place(planes, list(traits))
        raise IrregularGeometry(
            f"{doubled} of {len(planes)} slices lie at the position of another, and "
            f"{several_volumes.difference(alike)}: several volumes in one series; send each as a "
            "series of its own"
        )


def _from_enhanced(datasets: list[Dataset]) -> Volume:
    """Read one enhanced multi-frame image."""
    if len(datasets) != 1:
        raise InconsistentSeries(
            f"the series has {len(datasets)} multi-frame images, not one volume, and "
            + several_volumes.difference([[several_volumes.traits_of(ds) for ds in datasets]])
        )
    ds = datasets[0]
    _check_size(int(ds.get("NumberOfFrames") or 0))
    _check_frame_of_reference(ds)
    frames = ds.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != ds.NumberOfFrames:
        raise IrregularGeometry(
            f"{ds.NumberOfFrames} frames, but functional groups of {len(frames)} of them"
        )
    planes = [slice_planes.of_frame(ds, frame) for frame in frames]
    slice_planes.check_parallel(planes)
    _check_single_volume(planes, (several_volumes.traits_of_frame(ds, one) for one in frames))
    slice_planes.check_stack(planes)
    geometry = hd.Image.from_dataset(ds).get_volume(dtype=np.float32, **_STORED_TO_MEASURED)
    places = _places(planes, geometry)
    # highdicom orders the frames along the slice normal; many scanners store them the other way,
    # and results name a source frame by its number: axis 0 has to run as the frames are stored
    if places == list(range(len(places)))[::-1]:
        geometry = geometry.flip_spatial(0)
    elif places != list(range(len(places))):
        raise IrregularGeometry("the frames are not stored in the order of their positions")
    return _volume(geometry, [ds])


def _places(planes: Sequence[Plane], geometry: hd.Volume) -> list[int]:
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


def _volume(geometry: hd.Volume, ordered: Sequence[Dataset], notes: tuple[str, ...] = ()) -> Volume:
    """Drop the pixels from the headers, which live as long as the volume; check the values."""
    voxels = np.ascontiguousarray(geometry.array, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise UnsupportedPixels("the pixel values are not finite after rescale")
    _check_hounsfield(ordered[0], voxels)
    for ds in ordered:
        del ds.PixelData  # the library forgets its decoded copy with it
    return Volume(voxels, np.asarray(geometry.affine, dtype=np.float64), tuple(ordered), notes)


def _check_hounsfield(ds: Dataset, voxels: NDArray[np.float32]) -> None:
    """Refuse a CT that says nothing of its unit, unless its values can be HU as they are."""
    described = header.value(ds, "RescaleIntercept") is not None or "ModalityLUTSequence" in ds
    if ds.SOPClassUID in _CT and not described and voxels.min() >= 0:
        raise UnsupportedPixels(
            "the CT has no RescaleIntercept, and no value below 0: its values are not in HU"
        )
