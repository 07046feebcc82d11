"""Findings -> Segmentation on the source grid, one segment per finding: BINARY, or as a label map.

The frames are those of the source, so that a viewer lays them over it without resampling. The types
are as vague as the method: a score says "unlike the others", never what.

References
----------
PS3.3 A.51 (Segmentation and Label Map Segmentation IODs), C.8.20.2 (Segmentation Image module).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from dicom_node.errors import ObjectError
from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.identity import MANUFACTURER, MODEL_NAME
from dicom_node.objects import provenance
from dicom_node.objects.drawing import finding_color

#: PS3.16 CID 7150 and CID 7159; "lesion" of no organ, for the score knows no anatomy
CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
TYPE = Code("52988006", "SCT", "Lesion")
#: CID 7162
_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
#: viewers unpack every frame to a whole slice, and grow slow or give up beyond some hundred
MAX_FRAMES = 400


def make_segmentation(
    headers: Sequence[Dataset],
    labels: LabelMap,
    findings: Sequence[Finding],
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
    tracked: Mapping[int, str] | None = None,
) -> hd.seg.Segmentation | None:
    """(depth, height, width) ranks -> BINARY Segmentation; None without findings.

    Parameters
    ----------
    headers
        In the order of axis 0, one per slice, or one multi-frame header whose frames are in that
        order: `volume.build` hands them out so. They give each frame its place.
    labels
        Ranks of the findings on the source grid, 0 elsewhere.
    findings
        Ranks 1, 2, ... in order, each with at least one voxel; rank is segment number.
    series_description
        Cut off at the 64 characters of its value representation.
    tracked
        Tracking UIDs of findings that were seen before, by rank.

    Returns
    -------
    The object, not yet a file; frames without a segment are left out, and findings of the last
    ranks where all would need more than `MAX_FRAMES`. An empty segmentation would say nothing, so
    none is made.

    Raises
    ------
    ObjectError
        Labels, findings and headers do not belong together.
    """
    check_labels(headers, labels, findings)
    in_slices = _slices_with(labels)
    kept = findings[: n_fitting(in_slices)]
    uids = provenance.identifiers(headers, score, "segmentation", tracked)
    naming = Naming(node_id, series_number, series_description)
    return compose(hd.seg.SegmentationTypeValues.BINARY, headers, labels, kept, score, uids, naming)


def make_labelmap_segmentation(
    headers: Sequence[Dataset],
    labels: LabelMap,
    findings: Sequence[Finding],
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
    tracked: Mapping[int, str] | None = None,
) -> hd.seg.Segmentation | None:
    """(depth, height, width) ranks -> LABELMAP Segmentation, its pixels the ranks themselves.

    The segments, numbers and Tracking UIDs of `make_segmentation`, and its arguments and errors; a
    slice is one frame however many findings it holds, so that seldom one is left out. Segment 0 is
    the background. It is of a storage class of its own, newer than many archives.
    """
    check_labels(headers, labels, findings)
    in_slices = _slices_with(labels)
    together = [np.logical_or.reduce(in_slices[: n + 1]) for n in range(len(in_slices))]
    kept = findings[: sum(int(used.sum()) <= MAX_FRAMES for used in together)]
    uids = provenance.identifiers(headers, score, "labelmap segmentation", tracked)
    naming = Naming(node_id, series_number, series_description)
    kind = hd.seg.SegmentationTypeValues.LABELMAP
    return compose(kind, headers, labels, kept, score, uids, naming)


def _slices_with(labels: LabelMap) -> list[NDArray[np.bool_]]:
    """Return (depth,) for each rank, which slices hold it."""
    found = []
    for rank, box in enumerate(ndimage.find_objects(labels), 1):
        used = np.zeros(labels.shape[0], dtype=np.bool_)
        used[box[0]] = (labels[box] == rank).any(axis=(1, 2))
        found.append(used)
    return found


def n_fitting(in_slices: Sequence[NDArray[np.bool_]]) -> int:
    """Return how many findings, from the first on, fit `MAX_FRAMES`, a frame for each True."""
    needed = np.cumsum([int(used.sum()) for used in in_slices])
    return int((needed <= MAX_FRAMES).sum())


@dataclass(frozen=True, slots=True)
class Naming:
    """What a segmentation is called by."""

    node_id: str
    series_number: int
    series_description: str


def compose(
    kind: hd.seg.SegmentationTypeValues,
    headers: Sequence[Dataset],
    labels: LabelMap,
    findings: Sequence[Finding],
    score: ScoreSummary,
    uids: provenance.Identifiers,
    naming: Naming,
    **options: object,
) -> hd.seg.Segmentation | None:
    """Return the object of checked arguments, a segment per finding; None where none is left.

    `options` go to highdicom. Ranks without a finding become background.
    """
    if not findings:
        return None
    made = hd.seg.Segmentation(
        source_images=provenance.sanitized_headers(headers),
        pixel_array=np.where(labels <= len(findings), labels, np.uint8(0)),
        segmentation_type=kind,
        segment_descriptions=[_segment(finding, score, uids) for finding in findings],
        series_instance_uid=uids.series_uid,
        series_number=naming.series_number,
        sop_instance_uid=uids.instance_uid(1),
        instance_number=1,
        content_label="ANOMALY",
        content_description="Suspected anomalies, research use only",
        content_creator_name=provenance.CREATOR_NAME,
        series_description=naming.series_description[:64],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        **options,
        **provenance.common_arguments(headers, score, naming.node_id),
    )
    provenance.finish(made, headers[0], score, uids)
    return made


def check_labels(headers: Sequence[Dataset], labels: LabelMap, findings: Sequence[Finding]) -> None:
    """Refuse what would put a segment in the wrong place, or store an empty one.

    Without findings nothing is placed, and nothing is refused. Raises ObjectError.
    """
    if not findings:
        return
    expected = provenance.grid_of(headers)
    if labels.shape != expected:
        raise ObjectError(f"the label map is {labels.shape}, the source series {expected}")
    if any(not ds.get("FrameOfReferenceUID") for ds in headers):
        raise ObjectError("the source series has no Frame of Reference UID")
    # counted, not sorted: the labels of a large series are a hundred million
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]) + 1
    ranks = [finding.rank for finding in findings]
    if ranks != list(range(1, len(ranks) + 1)) or present.tolist() != ranks:
        raise ObjectError(f"the label map holds {present.tolist()}, the findings are {ranks}")


def _segment(
    finding: Finding, score: ScoreSummary, uids: provenance.Identifiers
) -> hd.seg.SegmentDescription:
    """Describe one segment; its Tracking UID is the finding's, whatever object it stands in."""
    # as CIELab in the object: the same colour as the outline in the pictures
    red, green, blue = finding_color(finding.rank)
    return hd.seg.SegmentDescription(
        segment_number=finding.rank,
        segment_label=f"Suspected anomaly {finding.rank}",
        segmented_property_category=CATEGORY,
        segmented_property_type=TYPE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(score),
        tracking_uid=uids.tracking_uid(finding.rank),
        tracking_id=f"Suspected anomaly {finding.rank}",
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )


def algorithm_identification(score: ScoreSummary) -> hd.AlgorithmIdentificationSequence:
    """Return what scored (PS3.3 Table 10-19), with the fingerprint as the version, and how."""
    return hd.AlgorithmIdentificationSequence(
        name=MODEL_NAME,
        family=_FAMILY,
        version=score.fingerprint[:64],
        source=MANUFACTURER,
        parameters=provenance.scoring_parameters(score),
    )
