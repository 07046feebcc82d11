"""Findings -> Grayscale Softcopy Presentation State: outlines that a viewer lays over the source.

For workstations that show presentation states and no segmentations: nothing is burned in, and the
outlines can be switched off.

References
----------
PS3.3 A.33.1 (Grayscale Softcopy Presentation State IOD), C.10.5 (Graphic Annotation), C.11.8
(Softcopy VOI LUT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.objects import provenance
from dicom_node.objects.drawing import finding_color


def make_presentation_states(
    headers: Sequence[Dataset],
    labels: LabelMap,
    findings: Sequence[Finding],
    score: ScoreSummary,
    *,
    window: tuple[float, float],
    node_id: str,
    series_number: int,
    series_description: str,
    tracked: Mapping[int, str] | None = None,
) -> Iterator[hd.pr.GrayscaleSoftcopyPresentationState]:
    """(depth, height, width) ranks -> outlines on the source slices; nothing without findings.

    A state has one rescale for all images that it is of (PS3.3 C.11.1), so that there is one state
    for each rescale of the source, and none where that is of no slice with a finding: one in all
    for most sources.

    Parameters
    ----------
    headers
        In the order of axis 0, one per slice, or one multi-frame header whose frames are in that
        order.
    window
        Centre and width, in the unit of the rescaled pixels.
    tracked
        Tracking UIDs of findings that were seen before, by rank.
    """
    uids = provenance.identifiers(headers, score, "presentation state", tracked)
    clean = provenance.sanitized_headers(headers)
    for copy in clean:
        copy.SamplesPerPixel = 1  # a volume has no colour
    parts = _by_rescale(headers)
    marked = np.flatnonzero(labels.any(axis=(1, 2))).tolist() if findings else []
    wanted = [part for part in parts if not set(part.slices).isdisjoint(marked)]
    for number, part in enumerate(wanted, 1):
        annotations = [
            annotation
            for finding in findings
            for annotation in _annotations(finding.rank, clean, labels, part.slices, uids)
        ]
        made = hd.pr.GrayscaleSoftcopyPresentationState(
            referenced_images=clean if len(clean) == 1 else [clean[at] for at in part.slices],
            series_instance_uid=uids.series_uid,
            series_number=series_number,
            sop_instance_uid=uids.instance_uid(number),
            instance_number=number,
            content_label="ANOMALY",
            content_description="Suspected anomalies, research use only",
            content_creator_name=provenance.CREATOR_NAME,
            graphic_layers=_layers(annotations),
            graphic_annotations=annotations,
            modality_lut_transformation=part.transformation(),
            voi_lut_transformations=[
                hd.pr.SoftcopyVOILUTTransformation(
                    window_center=window[0], window_width=max(window[1], 1.0)
                )
            ],
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=series_description[:64],
            **provenance.common_arguments(headers, score, node_id),
        )
        if len(clean) == 1 and len(parts) > 1:
            _name_frames(made, part.slices)
        provenance.name_body_part(made, headers[0])
        provenance.finish(made, headers[0], score, uids)
        yield made


@dataclass(frozen=True, slots=True)
class _Rescale:
    """What turns stored pixels into measured ones, and the slices where it does."""

    #: intercept, slope, type; None: the stored pixels are the measured ones
    values: tuple[float, float, str] | None
    #: indices of axis 0, ascending
    slices: list[int]

    def transformation(self) -> hd.ModalityLUTTransformation:
        """Return it as the Modality LUT module; the identity is said too.

        highdicom would otherwise look for it in the headers, and refuse frames that differ.
        """
        intercept, slope, unit = self.values or (0.0, 1.0, "US")
        return hd.ModalityLUTTransformation(intercept, slope, unit)


def _by_rescale(headers: Sequence[Dataset]) -> list[_Rescale]:
    """Put the slices together that have one rescale, in the order of their first slices."""
    n_slices = provenance.grid_of(headers)[0]
    slices: dict[tuple[float, float, str] | None, list[int]] = {}
    for at in range(n_slices):
        slices.setdefault(_rescale_of(headers, at), []).append(at)
    return [_Rescale(values, of) for values, of in slices.items()]


def _rescale_of(headers: Sequence[Dataset], at: int) -> tuple[float, float, str] | None:
    """Return intercept, slope and type of a slice; None where it has none."""
    said = headers[0] if len(headers) == 1 else headers[at]
    if len(headers) == 1:
        groups = [
            said.PerFrameFunctionalGroupsSequence[at],
            *said.get("SharedFunctionalGroupsSequence", []),
        ]
        found = [g for g in groups if g.get("PixelValueTransformationSequence")]
        if found:
            said = found[0].PixelValueTransformationSequence[0]
    slope, intercept = said.get("RescaleSlope"), said.get("RescaleIntercept")
    if slope in (None, "") or intercept in (None, ""):
        return None
    return float(intercept), float(slope), str(said.get("RescaleType") or "US")


def _name_frames(made: Dataset, slices: Sequence[int]) -> None:
    """Say of which frames of a multi-frame image a state is (PS3.3 C.11.11, Table 10-3)."""
    (series,) = made.ReferencedSeriesSequence
    series.ReferencedImageSequence[0].ReferencedFrameNumber = [at + 1 for at in slices]


def _layers(annotations: Sequence[hd.pr.GraphicAnnotation]) -> list[hd.pr.GraphicLayer]:
    """Return the layers of what is drawn, each once, by rank."""
    named = {annotation.GraphicLayer for annotation in annotations}
    return [_layer(rank) for rank in sorted(int(name.rpartition("_")[2]) for name in named)]


def _layer(rank: int) -> hd.pr.GraphicLayer:
    """Return the layer of one finding, in the colour that it has in every object."""
    return hd.pr.GraphicLayer(
        layer_name=f"ANOMALY_{rank}",
        order=rank,
        description=f"Suspected anomaly {rank}",
        display_color=hd.color.CIELabColor.from_rgb(*finding_color(rank)),
    )


def _annotations(
    rank: int,
    clean: Sequence[Dataset],
    labels: LabelMap,
    slices: Sequence[int],
    uids: provenance.Identifiers,
) -> Iterator[hd.pr.GraphicAnnotation]:
    """Yield the outlines of one finding, slice by slice of those given."""
    layer, name = _layer(rank), {"tracking_id": f"Suspected anomaly {rank}"}
    for at in (at for at in slices if (labels[at] == rank).any()):
        lines = outlines(labels[at] == rank)
        corner = max(lines, key=len).max(axis=0)
        yield hd.pr.GraphicAnnotation(
            referenced_images=[clean[0] if len(clean) == 1 else clean[at]],
            referenced_frame_number=at + 1 if len(clean) == 1 else None,
            graphic_layer=layer,
            graphic_objects=[
                hd.pr.GraphicObject(
                    hd.pr.GraphicTypeValues.POLYLINE,
                    line,
                    hd.pr.AnnotationUnitsValues.PIXEL,
                    tracking_uid=uids.tracking_uid(rank),
                    **name,
                )
                for line in lines
            ],
            text_objects=[
                hd.pr.TextObject(
                    str(rank),
                    hd.pr.AnnotationUnitsValues.PIXEL,
                    anchor_point=(float(corner[0]), float(corner[1])),
                    anchor_point_visible=False,
                    tracking_uid=uids.tracking_uid(rank),
                    **name,
                )
            ],
        )


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """(height, width) mask -> closed lines (n, 2) of (column, row) through the edges of its pixels.

    In PIXEL units: the outer corner of the first pixel is (0, 0), its centre (0.5, 0.5) (PS3.3
    C.10.5.1.2).
    """
    padded = np.pad(mask, 1).astype(np.float64)
    found = contour_generator(z=padded).lines(0.5)
    height, width = mask.shape
    return [
        np.clip(np.asarray(line, dtype=np.float64) - 0.5, 0.0, (width, height)) for line in found
    ]
