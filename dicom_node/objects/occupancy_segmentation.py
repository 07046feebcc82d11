"""Findings -> FRACTIONAL Segmentation of type OCCUPANCY: how much of each voxel a finding fills.

For volumes: what is smaller than a voxel, or ends inside one, is not rounded. Its values are shares
of volume above the threshold (`occupancy`), never scores: a score is neither an occupancy nor a
probability, and a viewer would take it for one.

References
----------
PS3.3 A.51 (Segmentation IOD), C.8.20.2.3 (Segmentation Fractional Type).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import ObjectError
from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.objects import provenance
from dicom_node.objects.occupancy import PLACES, Box, occupancies
from dicom_node.objects.segmentation import Naming, check_labels, compose, n_fitting

#: stands for a voxel that is filled; most readers take it for granted
FILLED = 255


def make_occupancy_segmentation(
    headers: Sequence[Dataset],
    anomaly_map: NDArray[np.float32],
    labels: LabelMap,
    findings: Sequence[Finding],
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
    tracked: Mapping[int, str] | None = None,
) -> hd.seg.Segmentation | None:
    """(depth, height, width) map and ranks -> FRACTIONAL Segmentation; None without findings.

    The segments, numbers and Tracking UIDs of `segmentation.make_segmentation`, and its arguments
    and errors. A finding reaches into the voxels beside its own, and into their slices, where part
    of them lies above the threshold; two findings may share a voxel, never the same part of it.

    Parameters
    ----------
    anomaly_map
        What the findings were located in, at the threshold of `score`.
    """
    check_labels(headers, labels, findings)
    if anomaly_map.shape != labels.shape:
        raise ObjectError(f"the map is {anomaly_map.shape}, the label map {labels.shape}")
    filled = [
        _Filled(box, np.round(counts * (FILLED / PLACES)).astype(np.uint8))
        for box, counts in occupancies(anomaly_map, labels, score.threshold)
    ]
    kept = n_fitting([one.slices() for one in filled])
    uids = provenance.identifiers(headers, score, "occupancy segmentation", tracked)
    made = compose(
        hd.seg.SegmentationTypeValues.FRACTIONAL,
        headers,
        _markers(filled[:kept], labels.shape),
        findings[:kept],
        score,
        uids,
        Naming(node_id, series_number, series_description),
        fractional_type=hd.seg.SegmentationFractionalTypeValues.OCCUPANCY,
        max_fractional_value=FILLED,
    )
    if made is not None:
        _fill(made, headers, filled[:kept])
    return made


@dataclass(frozen=True, slots=True)
class _Filled:
    """How much of each voxel one finding fills."""

    #: where it lies in the source grid
    box: Box
    #: 0..`FILLED`, of the size of the box
    values: NDArray[np.uint8]

    def slices(self) -> NDArray[np.bool_]:
        """Return, along the depth of the box, which slices it reaches."""
        return np.asarray(self.values.any(axis=(1, 2)), dtype=np.bool_)


def _markers(filled: Sequence[_Filled], shape: tuple[int, ...]) -> LabelMap:
    """Mark by a voxel each which finding reaches which slice.

    highdicom makes the frames by them. Whole arrays of fractions, one per finding, would be forty
    times as large as the source.
    """
    markers: LabelMap = np.zeros(shape, dtype=np.uint8)
    flat = markers.reshape(shape[0], -1)
    free = np.zeros(shape[0], dtype=np.intp)
    for rank, one in enumerate(filled, 1):
        at = np.flatnonzero(one.slices()) + one.box[0].start
        flat[at, free[at]] = rank
        free[at] += 1
    return markers


def _fill(made: Dataset, headers: Sequence[Dataset], filled: Sequence[_Filled]) -> None:
    """Put the occupancies in place of the markers, frame by frame."""
    depths = {str(header.SOPInstanceUID): depth for depth, header in enumerate(headers)}
    shared = made.SharedFunctionalGroupsSequence[0]
    frames = np.zeros((int(made.NumberOfFrames), int(made.Rows), int(made.Columns)), np.uint8)
    for frame, groups in zip(frames, made.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        named = source.get("ReferencedFrameNumber")  # of a multi-frame source, from 1
        depth = int(named) - 1 if named else depths[str(source.ReferencedSOPInstanceUID)]
        # where there is one segment only, it is said once for all frames
        segment = groups if "SegmentIdentificationSequence" in groups else shared
        rank = int(segment.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        one = filled[rank - 1]
        frame[one.box[1:]] = one.values[depth - one.box[0].start]
    made.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)
    made.SegmentsOverlap = "YES" if _share_voxels(filled, headers) else "NO"


def _share_voxels(filled: Sequence[_Filled], headers: Sequence[Dataset]) -> bool:
    """Tell whether any voxel is filled by more than one finding."""
    taken = np.zeros(provenance.grid_of(headers), dtype=np.bool_)
    for one in filled:
        mine = one.values > 0
        if (taken[one.box] & mine).any():
            return True
        taken[one.box][mine] = True
    return False
