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

import highdicom as hd
import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.objects import provenance
from dicom_node.objects.drawing import finding_color

#: what the grey values mean; highdicom copies them from the images
_GREY = ("RescaleIntercept", "RescaleSlope", "RescaleType")


def make_presentation_state(
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
) -> hd.pr.GrayscaleSoftcopyPresentationState | None:
    """(depth, height, width) ranks -> outlines on the source slices; None without findings.

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
    if not findings:
        return None
    uids = provenance.identifiers(headers, score, "presentation state", tracked)
    clean = _with_grey_values(headers, provenance.sanitized_headers(headers))
    made = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=clean,
        series_instance_uid=uids.series_uid,
        series_number=series_number,
        sop_instance_uid=uids.instance_uid(1),
        instance_number=1,
        content_label="ANOMALY",
        content_description="Suspected anomalies, research use only",
        content_creator_name=provenance.CREATOR_NAME,
        graphic_layers=[_layer(finding.rank) for finding in findings],
        graphic_annotations=[
            annotation
            for finding in findings
            for annotation in _annotations(finding.rank, clean, labels, uids)
        ],
        voi_lut_transformations=[
            hd.pr.SoftcopyVOILUTTransformation(
                window_center=window[0], window_width=max(window[1], 1.0)
            )
        ],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=series_description[:64],
        **provenance.common_arguments(headers, score, node_id),
    )
    provenance.name_body_part(made, headers[0])
    provenance.finish(made, headers[0], score, uids)
    return made


def _with_grey_values(headers: Sequence[Dataset], clean: list[Dataset]) -> list[Dataset]:
    """Give the cleaned headers what turns stored pixels into measured ones."""
    for source, copy in zip(headers, clean, strict=True):
        copy.SamplesPerPixel = 1  # a volume has no colour
        for keyword in _GREY:
            if source.get(keyword) not in (None, ""):
                setattr(copy, keyword, source.get(keyword))
    return clean


def _layer(rank: int) -> hd.pr.GraphicLayer:
    """Return the layer of one finding, in the colour that it has in every object."""
    return hd.pr.GraphicLayer(
        layer_name=f"ANOMALY_{rank}",
        order=rank,
        description=f"Suspected anomaly {rank}",
        display_color=hd.color.CIELabColor.from_rgb(*finding_color(rank)),
    )


def _annotations(
    rank: int, clean: Sequence[Dataset], labels: LabelMap, uids: provenance.Identifiers
) -> Iterator[hd.pr.GraphicAnnotation]:
    """Yield the outlines of one finding, slice by slice."""
    layer, name = _layer(rank), {"tracking_id": f"Suspected anomaly {rank}"}
    for at in np.flatnonzero((labels == rank).any(axis=(1, 2))).tolist():
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
