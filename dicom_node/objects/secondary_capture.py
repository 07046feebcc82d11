"""Findings -> single-frame RGB Secondary Capture series that scrolls with the source.

For every viewer that shows no segmentation. The pictures carry Image Plane attributes, which the
Secondary Capture IOD does not ask for: a viewer that looks at them links the series to the source,
one that does not shows a stack of pictures.

References
----------
PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6 (its modules), C.7.6.2 (Image Plane).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from dicom_node.errors import ObjectError
from dicom_node.findings import LabelMap, ScoreSummary
from dicom_node.identity import RESEARCH_ONLY
from dicom_node.objects import provenance
from dicom_node.objects.drawing import Picture, edge_letters
from dicom_node.objects.overlay import (
    default_window,
    legend_lines,
    picture_shape,
    render_slice,
)

#: PS3.16 CID 7202
_PURPOSE = Code("121322", "DCM", "Source image for image processing operation")
#: body parts without a face or a skin surface that a stack of slices could show
_NO_FACE = {"CHEST", "LUNG", "ABDOMEN", "PELVIS", "SPINE", "HEART", "LIVER", "KIDNEY", "PROSTATE"}


@dataclass(frozen=True, slots=True)
class _Stack:
    """One series, its map and what is said of it: all that the captures are made from."""

    headers: Sequence[Dataset]
    #: the header copies that highdicom accepts
    clean: Sequence[Dataset]
    #: (depth, height, width)
    voxels: NDArray[np.float32]
    anomaly_map: NDArray[np.float32]
    labels: LabelMap
    affine: NDArray[np.float64]
    score: ScoreSummary
    uids: provenance.Identifiers
    node_id: str
    series_number: int
    series_description: str

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Return the (depth, height, width) voxel size."""
        size: NDArray[np.float64] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return size


def make_secondary_captures(
    headers: Sequence[Dataset],
    voxels: NDArray[np.float32],
    anomaly_map: NDArray[np.float32],
    labels: LabelMap,
    affine: NDArray[np.float64],
    summary: Picture,
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
    slices: Literal["all", "findings"],
    margin: int = 2,
) -> Iterator[Dataset]:
    """(depth, height, width) volumes -> Secondary Capture instances, the `summary` page first.

    Parameters
    ----------
    headers
        In the order of axis 0, or one multi-frame header whose frames are in that order.
    summary
        The page that `overlay.render_summary` made.
    series_description
        Cut off at the 64 characters of its value representation.
    slices
        "findings" leaves out the slices farther than `margin` from every finding.

    Yields
    ------
    Objects, not yet files. Slice k (from 0) is instance k + 2 of the series, whether or not others
    are left out: numbers and UIDs do not depend on `slices`.

    Raises
    ------
    ObjectError
        The volumes and the headers do not belong together.
    """
    shapes = {voxels.shape, anomaly_map.shape, labels.shape}
    if len(shapes) > 1 or len(headers) not in (1, voxels.shape[0]):
        raise ObjectError(f"volumes of {sorted(shapes)} do not fit {len(headers)} headers")
    stack = _Stack(
        headers,
        provenance.sanitized_headers(headers),
        voxels,
        anomaly_map,
        labels,
        affine,
        score,
        provenance.identifiers(headers, score, "secondary capture"),
        node_id,
        series_number,
        series_description[:64],
    )
    return _captures(stack, summary, slices, margin)


def _captures(stack: _Stack, summary: Picture, slices: str, margin: int) -> Iterator[Dataset]:
    """Make the instances one by one: a whole series of pictures is larger than the volume."""
    yield _summary(stack, summary)
    window = default_window(stack.voxels, str(stack.clean[0].Modality))
    peak = float(stack.anomaly_map.max())
    for index in _shown_slices(stack.labels, slices, margin):
        yield _slice(stack, index, window, peak)


def _shown_slices(labels: LabelMap, slices: str, margin: int) -> list[int]:
    """Return the slices to show, ascending."""
    n_slices = labels.shape[0]
    if slices == "all":
        return list(range(n_slices))
    marked = np.flatnonzero(labels.any(axis=(1, 2)))
    steps = np.arange(-margin, margin + 1)
    near = np.unique(marked[:, None] + steps) if marked.size else marked
    return [int(index) for index in near if 0 <= index < n_slices]


def _summary(stack: _Stack, page: Picture) -> hd.sc.SCImage:
    """Make the first instance: a page, not a place in the patient."""
    ds = _capture(stack, page, 1, ("L", "P"))
    # type 2C without Image Plane (PS3.3 C.7.6.1): a page of several views has no one orientation
    ds.PatientOrientation = None
    ds.DerivationDescription = "Summary of the anomaly map; " + RESEARCH_ONLY
    ds.SourceImageSequence = [_reference(header, preserved=False) for header in stack.headers]
    return ds


def _slice(stack: _Stack, index: int, window: tuple[float, float], peak: float) -> hd.sc.SCImage:
    """Make the instance of one source slice: its picture, its place and where it comes from."""
    down, right = stack.affine[:3, 1], stack.affine[:3, 2]
    letters = edge_letters(down, right)
    picture = render_slice(
        stack.voxels[index],
        stack.anomaly_map[index],
        stack.labels[index],
        window=window,
        threshold=stack.score.threshold,
        spacing_mm=(float(stack.spacing_mm[1]), float(stack.spacing_mm[2])),
        letters=letters,
        legend=legend_lines(stack.score, index + 1, stack.voxels.shape[0]),
        peak=peak,
    )
    ds = _capture(stack, picture, index + 2, (_dicom(letters[1]), _dicom(letters[3])))
    ds.DerivationDescription = "Anomaly map over source slice; " + RESEARCH_ONLY
    _place(ds, stack, index)
    header = stack.headers[index] if len(stack.headers) > 1 else stack.headers[0]
    frame = index + 1 if "NumberOfFrames" in header else None
    ds.SourceImageSequence = [_reference(header, preserved=True, frame=frame)]
    return ds


def _dicom(letter: str) -> str:
    """Return the letter of PS3.3 C.7.6.1.1.1: head and feet for superior and inferior."""
    return {"S": "H", "I": "F"}.get(letter, letter)


def _capture(
    stack: _Stack, picture: Picture, number: int, orientation: tuple[str, str]
) -> hd.sc.SCImage:
    """Make a Secondary Capture without geometry; `orientation` is that of a row, of a column."""
    # highdicom gets the cleaned header; `finish` then puts back the identity as it came
    clean, source = stack.clean[0], stack.headers[0]
    ds = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=clean,
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=stack.uids.series_uid,
        series_number=stack.series_number,
        sop_instance_uid=stack.uids.instance_uid(number),
        instance_number=number,
        patient_orientation=orientation,
        series_description=stack.series_description,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **provenance.common_arguments(stack.headers, stack.score, stack.node_id),
    )
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.Modality = "OT"  # keeps it out of hanging protocols, and out of our own input
    ds.ConversionType = "WSD"
    ds.BurnedInAnnotation = "NO"  # the legend names no patient
    # a reformatted head may show a face (PS3.3 C.7.6.1): YES wherever it is not known to be absent
    body_part = str(clean.get("BodyPartExamined") or "")
    ds.RecognizableVisualFeatures = "NO" if body_part in _NO_FACE else "YES"
    # as the source says, never made up: an invented "unpaired" would be a claim about the patient
    for keyword in ("BodyPartExamined", "Laterality"):
        if clean.get(keyword):
            setattr(ds, keyword, clean[keyword].value)
    _carry_compression(ds, clean)
    provenance.finish(ds, source, stack.score, stack.uids)
    return ds


def _carry_compression(ds: Dataset, source: Dataset) -> None:
    """Say that the picture is lossy when its source was (PS3.3 C.7.6.1.1.5): once so, always so."""
    lossy = str(source.get("LossyImageCompression") or "00") == "01"
    ds.LossyImageCompression = "01" if lossy else "00"
    if not lossy:
        return
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if source.get(keyword):
            setattr(ds, keyword, source[keyword].value)


def _place(ds: Dataset, stack: _Stack, index: int) -> None:
    """Give the picture area the place of its slice (PS3.3 C.7.6.2.1.1).

    The legend lies below it: the rows go on, beyond the source image.
    """
    height, width = stack.voxels.shape[1:]
    spacing = stack.spacing_mm
    rows, columns = picture_shape((height, width), (float(spacing[1]), float(spacing[2])))
    pixel = np.array([height / rows, width / columns])  # size in source pixels
    # edges coincide, so the first centre moves towards the corner by half the difference
    corner = np.array([index, *(pixel - 1.0) / 2.0, 1.0])
    down, right = stack.affine[:3, 1] / spacing[1], stack.affine[:3, 2] / spacing[2]
    ds.ImagePositionPatient = _numbers((stack.affine @ corner)[:3])
    ds.ImageOrientationPatient = _numbers(np.concatenate([right, down]))
    ds.PixelSpacing = _numbers(pixel * spacing[1:])
    ds.SliceThickness = (
        stack.clean[min(index, len(stack.clean) - 1)].get("SliceThickness")
        or (_numbers(spacing[:1])[0])
    )
    ds.FrameOfReferenceUID = stack.headers[0].FrameOfReferenceUID
    ds.PositionReferenceIndicator = stack.headers[0].get("PositionReferenceIndicator") or None


def _numbers(values: NDArray[np.float64]) -> list[DSfloat]:
    """Write numbers in the 16 characters of a decimal string (PS3.5 6.2)."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _reference(header: Dataset, *, preserved: bool, frame: int | None = None) -> Dataset:
    """Return an item of Source Image Sequence (PS3.3 C.7.6.1); `frame` counts from 1."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept(_PURPOSE.value, _PURPOSE.scheme_designator, _PURPOSE.meaning)
    ]
    item.SpatialLocationsPreserved = "YES" if preserved else "NO"
    return item
