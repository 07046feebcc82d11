"""A volume -> a proper series of MR Image Storage instances (PS3.3 A.4), for demo and tests.

The instances pass ``dciodvfy``: what a scanner writes is what the node must be shown. UIDs are
derived from who was scanned and when, so that a second run makes the same series.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

_NAMESPACE = uuid.UUID("7d6f8a44-54f5-4f0c-9f5e-0b0a43c5c1aa")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Who was scanned and how; patient, study description, date and time make the study."""

    patient_id: str
    patient_name: str
    series_description: str = "T1 3D"
    study_description: str = "MR head"
    body_part: str = "HEAD"
    #: "SE", "IR", "GR", "EP" or "RM" (PS3.3 C.8.3.1)
    scanning_sequence: str = "GR"
    #: DA and TM, local time (PS3.5 6.2)
    date: str = "20260105"
    time: str = "101500"


def make_uid(*parts: str) -> str:
    """Return a UID derived from `parts` (PS3.5 B.2): the same parts give the same UID."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(31).join(parts)).int}"


def write_mr_series(
    voxels: NDArray[np.generic],
    affine: NDArray[np.float64],
    folder: Path,
    acquisition: Acquisition,
) -> list[Path]:
    """Write (depth, height, width) voxels as one instance per slice of axis 0.

    Parameters
    ----------
    voxels
        Rounded and clipped to 0..65535.
    affine
        (4, 4), index (depth, height, width) to LPS mm; its columns must be orthogonal, since an
        Image Plane knows no shear.
    folder
        Made where it is missing; files of the same names are replaced.

    Returns
    -------
    The files, in the order of axis 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(np.rint(np.asarray(voxels, dtype=np.float64)), 0, 65535).astype("<u2")
    files = []
    for number in range(pixels.shape[0]):
        ds = _instance(acquisition, number)
        _set_plane(ds, affine, number)
        _set_pixels(ds, pixels[number])
        path = folder / f"{number + 1:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def volume_from_nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read a NIfTI volume as (depth, height, width) towards S, P, L and its index -> LPS affine.

    Parameters
    ----------
    path
        A three-dimensional image in any orientation.

    Returns
    -------
    Voxels with the file's scaling applied, and the (4, 4) affine of the reordered index.
    """
    image = nibabel.as_closest_canonical(nibabel.load(path))
    voxels = np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0)[:, ::-1, ::-1]
    # index of the reordered array -> index (x, y, z) of the RAS one
    to_xyz = np.eye(4)
    to_xyz[:3, :3] = [[0, 0, -1], [0, -1, 0], [1, 0, 0]]
    to_xyz[:3, 3] = [image.shape[0] - 1, image.shape[1] - 1, 0]
    return np.ascontiguousarray(voxels), _RAS_TO_LPS @ image.affine @ to_xyz


def _instance(acquisition: Acquisition, number: int) -> Dataset:
    """Return patient, study, series, equipment and acquisition attributes of one instance."""
    ds = Dataset()
    # another visit of the same patient is another study
    visit = (acquisition.study_description, acquisition.date, acquisition.time)
    identity = (acquisition.patient_id, *visit)
    ds.SOPClassUID = MRImageStorage
    ds.StudyInstanceUID = make_uid("study", *identity)
    ds.SeriesInstanceUID = make_uid("series", *identity, acquisition.series_description)
    ds.SOPInstanceUID = make_uid("instance", ds.SeriesInstanceUID, str(number))
    ds.FrameOfReferenceUID = make_uid("frame of reference", *identity)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    ds.PatientID, ds.PatientName = acquisition.patient_id, acquisition.patient_name
    ds.PatientBirthDate, ds.PatientSex, ds.PatientPosition = "", "O", "HFS"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = acquisition.date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = acquisition.time
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "", "1", ""
    ds.StudyDescription = acquisition.study_description
    ds.SeriesDescription = acquisition.series_description
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 3, number + 1, 1
    ds.Modality, ds.BodyPartExamined = "MR", acquisition.body_part
    ds.Manufacturer = "made for tests"
    ds.PositionReferenceIndicator = ""
    ds.ScanningSequence, ds.SequenceVariant = acquisition.scanning_sequence, ["SP", "MP"]
    ds.ScanOptions, ds.MRAcquisitionType = "", "3D"
    ds.RepetitionTime, ds.EchoTime = "2300", "2.98"
    if "IR" in acquisition.scanning_sequence:
        ds.InversionTime = "900"  # only there (PS3.3 C.8.3.1)
    ds.EchoTrainLength, ds.FlipAngle, ds.MagneticFieldStrength = 1, "9", "3"
    return ds


def _set_plane(ds: Dataset, affine: NDArray[np.float64], number: int) -> None:
    """Set the Image Plane module (PS3.3 C.7.6.2) of slice `number`."""
    # (3,) mm: between slices, between rows, between columns
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along_rows, along_columns = affine[:3, 2] / spacing[2], affine[:3, 1] / spacing[1]
    # centre of the first voxel transmitted
    position = affine[:3, 3] + number * affine[:3, 0]
    # DS holds 16 characters (PS3.5 6.2): eight digits, sign, point and exponent fit
    ds.ImagePositionPatient = [f"{value:.8g}" for value in position]
    ds.ImageOrientationPatient = [f"{value:.8g}" for value in (*along_rows, *along_columns)]
    ds.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[2]:.8g}"]
    ds.SliceThickness = ds.SpacingBetweenSlices = f"{spacing[0]:.8g}"


def _set_pixels(ds: Dataset, pixels: NDArray[np.uint16]) -> None:
    """Set the Image Pixel module (PS3.3 C.7.6.3) and the file meta information."""
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = pixels.tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
