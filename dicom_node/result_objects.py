"""A reported score -> its result objects as files: what is configured, durable, and named.

Each is made of the same findings, so that a report refers to the segments beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicom_node import durable, tracking
from dicom_node.config import Results
from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.line import Line
from dicom_node.objects import provenance
from dicom_node.objects.drawing import Picture
from dicom_node.objects.key_objects import make_key_objects
from dicom_node.objects.measurement_report import make_report
from dicom_node.objects.occupancy_segmentation import make_occupancy_segmentation
from dicom_node.objects.overlay import default_window, render_summary
from dicom_node.objects.parametric_map import make_parametric_map
from dicom_node.objects.presentation_state import make_presentation_states
from dicom_node.objects.secondary_capture import make_secondary_captures
from dicom_node.objects.segmentation import make_labelmap_segmentation, make_segmentation
from dicom_node.store import result_table
from dicom_node.store.result_table import ResultObject, Score
from dicom_node.volume import Volume

#: Series Numbers of the objects of two parts of one series differ by this
_NUMBERS_APART = 1000
#: characters of a Series Description (PS3.5 6.2, LO)
_LONGEST = 64


@dataclass(frozen=True, slots=True)
class Found:
    """What the report stage has found in one volume."""

    source: Volume
    #: (depth, height, width) calibrated scores and ranks, on the grid of `source`
    voxel_map: NDArray[np.float32]
    labels: LabelMap
    findings: Sequence[Finding]
    score: ScoreSummary

    @property
    def modality(self) -> str:
        """Return what kind of image it is, empty where it does not say."""
        return str(self.source.headers[0].get("Modality", ""))

    def peak_slices(self) -> set[int]:
        """Return the slices that hold the highest score of a finding, from 0."""
        inverse = np.linalg.inv(self.source.affine)
        peaks = [(inverse @ [*finding.peak_mm, 1.0])[0] for finding in self.findings]
        return {round(float(at)) for at in peaks}


def write_objects(line: Line, folder: Path, entry: Score, found: Found) -> list[ResultObject]:
    """Write the configured objects and the summary picture; returns what is to be sent.

    `folder` exists: the score stage has made it.
    """
    picture = render_summary(
        found.source.voxels,
        found.voxel_map,
        found.labels,
        found.source.affine,
        found.findings,
        found.score,
        modality=found.modality,
    )
    with durable.replacing(folder / "summary.png") as partial:
        Image.fromarray(picture).save(partial, "PNG")
    earlier = _earlier(line, entry)
    tracked = earlier.tracking_uids(found.labels, found.source.affine)
    maker = _Maker(line.config.results, line.config.node.node_id, found, earlier, tracked)
    made = []
    for ds, kind, name in maker.objects(picture):
        provenance.name_frames(ds, found.source.headers[0], found.score)
        made.append(_save_object(ds, kind, folder / name))
    return made


def _save_object(ds: Dataset, kind: str, path: Path) -> ResultObject:
    """Write a Part 10 file (PS3.10 section 7) that is whole or absent."""
    with durable.replacing(path) as partial:
        ds.save_as(partial, enforce_file_format=True)
    name = f"{path.parent.name}/{path.name}"
    return ResultObject(str(ds.SOPInstanceUID), kind, str(ds.SeriesInstanceUID), name)


def described(what: str, part: str = "") -> str:
    """Return the Series Description of a kind of object, of a part of a series with its name.

    Of a long name as much as there is room for: LO holds 64 characters, and the last are needed.
    """
    head, tail = f"dicom_node anomaly {what}", " (research use only)"
    room = _LONGEST - len(head) - len(tail) - len(", ")
    name = part if len(part) <= room else f"{part[: room - 2].rstrip(' ,')}.."
    return f"{head}, {name}{tail}" if part else f"{head}{tail}"


# --- an earlier revision ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What the latest earlier revision of the volume has been given, where it is still there."""

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
        where = entry.series_instance_uid, entry.revision, entry.part
        number = result_table.earlier_score(db, *where)
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


# --- objects ------------------------------------------------------------------------------------


class _Named(TypedDict):
    """What every object is called by."""

    node_id: str
    series_number: int
    series_description: str


@dataclass(slots=True)
class _Maker:
    """Makes the objects of one score, one in memory at a time but for the segmentation."""

    results: Results
    node_id: str
    found: Found
    earlier: _Earlier
    #: Tracking UIDs of findings that were seen before, by rank
    tracked: Mapping[int, str]
    #: headers of what is worth a look of all that was made
    _key_objects: list[Dataset] = field(default_factory=list)

    def objects(self, picture: Picture) -> Iterator[tuple[Dataset, str, str]]:
        """Yield each configured object, its kind, and the name of its file."""
        segmentation = self._segmentation() if self.results.segmentation else None
        if segmentation is not None:
            yield segmentation, "SEG", "seg.dcm"
            if self.results.key_objects:
                self._keep(segmentation)
        if self.results.measurement_report:
            yield self._report(segmentation), "SR", "sr.dcm"
        yield from self._other_segmentations()
        if self.results.parametric_map:
            yield self._parametric_map(), "PM", "pm.dcm"
        if self.results.presentation_state:
            yield from self._presentation_states()
        if self.results.secondary_capture:
            yield from self._captures(picture)
        selection = self._selection() if self.results.key_objects else None
        if selection is not None:
            yield selection, "KO", "ko.dcm"

    def _named(self, number: int, what: str) -> _Named:
        """Return what every object is called by."""
        part = self.found.score.part
        return {
            "node_id": self.node_id,
            "series_number": number + _NUMBERS_APART * (part.number if part else 0),
            "series_description": described(what, part.name if part else ""),
        }

    def _keep(self, ds: Dataset) -> None:
        """Keep the header of an object that is worth a look; it has been written."""
        kept = Dataset()
        kept.update({element.tag: element for element in ds if element.keyword != "PixelData"})
        self._key_objects.append(kept)

    def _segmentation(self) -> Dataset | None:
        """Make one SEG with a segment per finding; none where there is no finding."""
        return make_segmentation(
            self.found.source.headers,
            self.found.labels,
            self.found.findings,
            self.found.score,
            tracked=self.tracked,
            **self._named(self.results.series_number_segmentation, "SEG"),
        )

    def _other_segmentations(self) -> Iterator[tuple[Dataset, str, str]]:
        """Yield the same segments as a label map, and as shares of voxels, where configured."""
        source, found = self.found.source.headers, self.found
        if self.results.labelmap_segmentation:
            named = self._named(self.results.series_number_labelmap_segmentation, "label map")
            made = make_labelmap_segmentation(
                source, found.labels, found.findings, found.score, tracked=self.tracked, **named
            )
            if made is not None:
                yield made, "SEG labelmap", "seg_labelmap.dcm"
        if self.results.occupancy_segmentation:
            named = self._named(self.results.series_number_occupancy_segmentation, "occupancy")
            made = make_occupancy_segmentation(
                source,
                found.voxel_map,
                found.labels,
                found.findings,
                found.score,
                tracked=self.tracked,
                **named,
            )
            if made is not None:
                yield made, "SEG occupancy", "seg_occupancy.dcm"

    def _report(self, segmentation: Dataset | None) -> Dataset:
        """Make the structured report, which names the earlier one that it supersedes."""
        made: Dataset = make_report(
            self.found.source.headers,
            segmentation,
            self.found.findings,
            self.found.score,
            tracked=self.tracked,
            previous=self.earlier.report,
            **self._named(self.results.series_number_measurement_report, "report"),
        )
        return made

    def _parametric_map(self) -> Dataset:
        """Make the map of all voxels' scores."""
        made: Dataset = make_parametric_map(
            self.found.source.headers,
            self.found.voxel_map,
            self.found.score,
            **self._named(self.results.series_number_parametric_map, "map"),
        )
        return made

    def _presentation_states(self) -> Iterator[tuple[Dataset, str, str]]:
        """Make the outlines over the source; none where there is no finding."""
        states = make_presentation_states(
            self.found.source.headers,
            self.found.labels,
            self.found.findings,
            self.found.score,
            window=default_window(self.found.source.voxels, self.found.modality),
            tracked=self.tracked,
            **self._named(self.results.series_number_presentation_state, "outlines"),
        )
        for number, state in enumerate(states, 1):
            yield state, "PR", f"pr-{number:04d}.dcm"

    def _captures(self, picture: Picture) -> Iterator[tuple[Dataset, str, str]]:
        """Make the overlay series, the summary picture first."""
        captures = make_secondary_captures(
            self.found.source.headers,
            self.found.source.voxels,
            self.found.voxel_map,
            self.found.labels,
            self.found.source.affine,
            picture,
            self.found.score,
            slices=self.results.secondary_capture_slices,
            **self._named(self.results.series_number_secondary_capture, "overlay"),
        )
        # slice k is instance k + 2, after the summary
        wanted = {1, *(at + 2 for at in self.found.peak_slices())}
        for number, capture in enumerate(captures, 1):
            yield capture, "SC", f"sc-{number:04d}.dcm"
            if self.results.key_objects and int(capture.InstanceNumber) in wanted:
                self._keep(capture)

    def _selection(self) -> Dataset | None:
        """Make the bookmark: the summary, each finding's highest slice, the segmentation."""
        if not self.found.findings:
            return None
        return make_key_objects(
            self.found.source.headers,
            self._key_objects,
            self.found.score,
            **self._named(self.results.series_number_key_objects, "key objects"),
        )
