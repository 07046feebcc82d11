"""A reported score -> its result objects as files: what is configured, durable, and named.

Each is made of the same findings, so that a report refers to the segments beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicom_node import durable, tracking
from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.line import Line
from dicom_node.objects.drawing import Picture
from dicom_node.objects.measurement_report import make_report
from dicom_node.objects.overlay import render_summary
from dicom_node.objects.parametric_map import make_parametric_map
from dicom_node.objects.secondary_capture import make_secondary_captures
from dicom_node.objects.segmentation import make_segmentation
from dicom_node.store import result_table
from dicom_node.store.result_table import ResultObject, Score
from dicom_node.volume import Volume


def write_objects(
    line: Line,
    folder: Path,
    entry: Score,
    source: Volume,
    voxel_map: NDArray[np.float32],
    labels: LabelMap,
    found: Sequence[Finding],
    summary: ScoreSummary,
) -> list[ResultObject]:
    """Write the configured objects and the summary picture; returns what is to be sent.

    Parameters
    ----------
    folder
        Exists; the score stage has made it.
    voxel_map, labels
        (depth, height, width) on the source grid, as `source` is.
    """
    picture = render_summary(
        source.voxels,
        voxel_map,
        labels,
        source.affine,
        found,
        summary,
        modality=str(source.headers[0].get("Modality", "")),
    )
    with durable.replacing(folder / "summary.png") as partial:
        Image.fromarray(picture).save(partial, "PNG")
    made: list[ResultObject] = []
    earlier = _earlier(line, entry)
    tracked = earlier.tracking_uids(labels, source.affine)
    segmentation = None
    if line.config.results.segmentation:
        segmentation = _segmentation(line, source, labels, found, summary, tracked)
    if segmentation is not None:
        made.append(_save_object(segmentation, "SEG", folder / "seg.dcm"))
    if line.config.results.measurement_report:
        report_made = _report(line, source, segmentation, found, summary, earlier, tracked)
        made.append(_save_object(report_made, "SR", folder / "sr.dcm"))
    if line.config.results.parametric_map:
        scores = _parametric_map(line, source, voxel_map, summary)
        made.append(_save_object(scores, "PM", folder / "pm.dcm"))
    if line.config.results.secondary_capture:
        made += _write_captures(line, folder, source, voxel_map, labels, picture, summary)
    return made


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What the latest earlier revision of the series has been given, where it is still there."""

    findings: Sequence[Finding] = ()
    segmentation: Dataset | None = None
    report: Dataset | None = None

    def tracking_uids(self, labels: LabelMap, affine: NDArray[np.float64]) -> dict[int, str]:
        """Return by rank the Tracking UIDs of findings that are seen again."""
        if self.segmentation is None:
            return {}
        known = {
            int(segment.SegmentNumber): str(segment.TrackingUID)
            for segment in self.segmentation.SegmentSequence
        }
        again = tracking.seen_again(self.findings, labels, affine)
        return {rank: known[before] for rank, before in again.items() if before in known}


def _earlier(line: Line, entry: Score) -> _Earlier:
    """Read what is kept of the revision before."""
    with line.database.read() as db:
        number = result_table.earlier_score(db, entry.series_instance_uid, entry.revision)
        if number is None:
            return _Earlier()
        found, objects = result_table.findings_of(db, number), result_table.results_of(db, number)
    paths = {item.kind: line.folders.results / item.file_name for item in objects}
    kept = {
        kind: pydicom.dcmread(paths[kind], stop_before_pixels=True)
        for kind in ("SEG", "SR")
        if kind in paths and paths[kind].exists()
    }
    return _Earlier(found, kept.get("SEG"), kept.get("SR"))


def _segmentation(
    line: Line,
    source: Volume,
    labels: LabelMap,
    found: Sequence[Finding],
    summary: ScoreSummary,
    tracked: Mapping[int, str],
) -> Dataset | None:
    """Make one SEG with a segment per finding; none where there is no finding."""
    return make_segmentation(
        source.headers,
        labels,
        found,
        summary,
        node_id=line.config.node.node_id,
        series_number=line.config.results.series_number_segmentation,
        series_description="dicom_node anomaly SEG (research use only)",
        tracked=tracked,
    )


def _parametric_map(
    line: Line, source: Volume, voxel_map: NDArray[np.float32], summary: ScoreSummary
) -> Dataset:
    """Make the map of all voxels' scores."""
    made: Dataset = make_parametric_map(
        source.headers,
        voxel_map,
        summary,
        node_id=line.config.node.node_id,
        series_number=line.config.results.series_number_parametric_map,
        series_description="dicom_node anomaly map (research use only)",
    )
    return made


def _report(
    line: Line,
    source: Volume,
    segmentation: Dataset | None,
    found: Sequence[Finding],
    summary: ScoreSummary,
    earlier: _Earlier,
    tracked: Mapping[int, str],
) -> Dataset:
    """Make the structured report, which names the one of an earlier revision that it supersedes."""
    made: Dataset = make_report(
        source.headers,
        segmentation,
        found,
        summary,
        node_id=line.config.node.node_id,
        series_number=line.config.results.series_number_measurement_report,
        series_description="dicom_node anomaly report (research use only)",
        tracked=tracked,
        previous=earlier.report,
    )
    return made


def _write_captures(
    line: Line,
    folder: Path,
    source: Volume,
    voxel_map: NDArray[np.float32],
    labels: LabelMap,
    picture: Picture,
    summary: ScoreSummary,
) -> list[ResultObject]:
    """Write the overlay series, the summary picture first."""
    captures = make_secondary_captures(
        source.headers,
        source.voxels,
        voxel_map,
        labels,
        source.affine,
        picture,
        summary,
        node_id=line.config.node.node_id,
        series_number=line.config.results.series_number_secondary_capture,
        series_description="dicom_node anomaly overlay (research use only)",
        slices=line.config.results.secondary_capture_slices,
    )
    return [
        _save_object(capture, "SC", folder / f"sc-{number:04d}.dcm")
        for number, capture in enumerate(captures, 1)
    ]


def _save_object(ds: Dataset, kind: str, path: Path) -> ResultObject:
    """Write a Part 10 file (PS3.10 section 7) that is whole or absent."""
    with durable.replacing(path) as partial:
        ds.save_as(partial, enforce_file_format=True)
    name = f"{path.parent.name}/{path.name}"
    return ResultObject(str(ds.SOPInstanceUID), kind, str(ds.SeriesInstanceUID), name)
