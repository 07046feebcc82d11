"""Series -> volume: voxels with patient geometry, only through highdicom's volume classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import InconsistentSeries, IrregularGeometry, NotScorable, UnsupportedPixels

#: fewer slices make no volume: localizers and scouts
MIN_SLICES = 8

#: PS3.3 C.7.6.3: the attributes that make a data set an image
_ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
}


@dataclass(frozen=True, slots=True)
class Volume:
    """One regular volume on the source grid."""

    #: (depth, height, width) float32; rescale applied, so HU for CT
    voxels: NDArray[np.float32]
    #: (4, 4) float64, index (depth, height, width) -> LPS mm (PS3.3 C.7.6.2.1.1)
    affine: NDArray[np.float64]
    #: headers without pixel data: one per slice in the order of axis 0, or one for an enhanced
    #: image
    headers: tuple[Dataset, ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return (depth, height, width) voxel size."""
        depth, height, width = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(depth), float(height), float(width)


def build(files: Sequence[Path]) -> Volume:
    """Read the instances of one series and stack them.

    Raises NotScorable, InconsistentSeries, IrregularGeometry or UnsupportedPixels, each naming what
    is at fault.
    """
    datasets: list[Dataset] = [pydicom.dcmread(path) for path in files]
    _check_consistent(datasets)
    if datasets[0].SOPClassUID in _ENHANCED:
        return _from_enhanced(datasets)
    return _from_slices(datasets)


def _check_consistent(datasets: Sequence[Dataset]) -> None:
    """Refuse what is no image, or not one acquisition."""
    if not datasets:
        raise InconsistentSeries("the series has no instance on disk")
    kinds = {ds.SOPClassUID.name for ds in datasets}
    if len(kinds) > 1:
        raise InconsistentSeries(f"the series mixes SOP Classes: {', '.join(sorted(kinds))}")
    if any("PixelData" not in ds for ds in datasets):
        raise NotScorable(f"{kinds.pop()} instances of the series hold no pixel data")
    for keyword in ("Rows", "Columns", "SamplesPerPixel"):
        values = {ds.get(keyword) for ds in datasets}
        if len(values) > 1:
            raise InconsistentSeries(
                f"{keyword} differs inside the series: {sorted(map(str, values))}"
            )
    if datasets[0].get("SamplesPerPixel", 1) != 1:
        raise NotScorable("the images are in colour; only monochrome CT and MR are scored")


def _from_slices(datasets: list[Dataset]) -> Volume:
    """Stack classic single-frame instances."""
    if len(datasets) < MIN_SLICES:
        raise IrregularGeometry(
            f"the series has {len(datasets)} slices; a volume needs at least {MIN_SLICES} "
            "(a localizer or scout: route only volume series here)"
        )
    for ds in datasets:
        _check_plane(ds)
    try:
        geometry = hd.get_volume_from_series(datasets, dtype=np.float32)
    except (ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise _geometry_fault(error, len(datasets)) from error
    ordered = _by_position(datasets, geometry)
    return _volume(geometry, ordered)


def _check_plane(ds: Dataset) -> None:
    """Refuse an instance without the attributes of the Image Plane module (PS3.3 C.7.6.2)."""
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if not ds.get(keyword):
            raise IrregularGeometry(f"instance {ds.SOPInstanceUID} has no {keyword}")
    if not ds.get("FrameOfReferenceUID"):
        raise IrregularGeometry(f"instance {ds.SOPInstanceUID} has no FrameOfReferenceUID")


def _geometry_fault(error: Exception, n_slices: int) -> Exception:
    """Name what stopped highdicom: the pixels or the geometry."""
    text = str(error)
    if (
        "decode" in text.lower()
        or "pixel data" in text.lower()
        or "transfer syntax" in text.lower()
    ):
        return UnsupportedPixels(f"the pixel data cannot be decoded: {text}")
    return IrregularGeometry(
        f"the {n_slices} slices do not make one regular volume: {text} "
        "(missing or doubled slices, several volumes in one series, or gantry tilt)"
    )


def _by_position(datasets: list[Dataset], geometry: hd.Volume) -> list[Dataset]:
    """Order the data sets as the volume's first axis runs; highdicom keeps no order."""
    inverse = np.linalg.inv(geometry.affine)
    places = {
        round(float((inverse @ np.append(np.asarray(ds.ImagePositionPatient, float), 1.0))[0])): ds
        for ds in datasets
    }
    if sorted(places) != list(range(len(datasets))):
        raise IrregularGeometry("two slices of the series lie at one position")
    return [places[index] for index in range(len(datasets))]


def _from_enhanced(datasets: list[Dataset]) -> Volume:
    """Read one enhanced multi-frame image."""
    if len(datasets) != 1:
        raise InconsistentSeries(
            f"the series has {len(datasets)} multi-frame images, not one volume"
        )
    try:
        image = hd.Image.from_dataset(datasets[0])
        geometry = image.get_volume(dtype=np.float32)
    except (ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise _geometry_fault(error, int(datasets[0].get("NumberOfFrames", 0))) from error
    return _volume(geometry, [datasets[0]])


def _volume(geometry: hd.Volume, ordered: Sequence[Dataset]) -> Volume:
    """Drop the pixels from the headers; check the values."""
    voxels = np.ascontiguousarray(geometry.array, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise UnsupportedPixels("the pixel values are not finite after rescale")
    for ds in ordered:
        del ds.PixelData
    return Volume(voxels, np.asarray(geometry.affine, dtype=np.float64), tuple(ordered))
