"""Findings -> BINARY Segmentation on the source grid, one segment per finding.

The frames are those of the source, so that a viewer lays them over it without resampling. The types
are as vague as the method: a score says "unlike the others", never what.

References
----------
PS3.3 A.51 (Segmentation IOD), C.8.20.2 (Segmentation Image module).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

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
    """(depth, height, width) ranks -> Segmentation; None without findings.

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
    The object, not yet a file; frames without a segment are left out. An empty segmentation would
    say nothing, so none is made.

    Raises
    ------
    ObjectError
        Labels, findings and headers do not belong together.
    """
    if not findings:
        return None
    _check_labels(headers, labels, findings)
    uids = provenance.identifiers(headers, score, "segmentation", tracked)
    segmentation = hd.seg.Segmentation(
        source_images=provenance.sanitized_headers(headers),
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(finding, score, uids) for finding in findings],
        series_instance_uid=uids.series_uid,
        series_number=series_number,
        sop_instance_uid=uids.instance_uid(1),
        instance_number=1,
        content_label="ANOMALY",
        content_description="Suspected anomalies, research use only",
        content_creator_name=provenance.CREATOR_NAME,
        series_description=series_description[:64],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        **provenance.common_arguments(headers, score, node_id),
    )
    provenance.finish(segmentation, headers[0], score, uids)
    return segmentation


def _check_labels(
    headers: Sequence[Dataset], labels: LabelMap, findings: Sequence[Finding]
) -> None:
    """Refuse what would put a segment in the wrong place, or store an empty one."""
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
