"""Anomaly map -> Parametric Map on the source grid: the numbers behind the colours, as float32.

For those who measure: viewers that show it are few, and it is as large as its source twice over, so
that it is made only where it is asked for.

References
----------
PS3.3 A.75 (Parametric Map IOD), C.7.6.16.2.8 (Frame Anatomy), C.7.6.16.2.11 (Real World Value
Mapping).
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import body_parts
from dicom_node.errors import ObjectError
from dicom_node.findings import ScoreSummary
from dicom_node.objects import provenance

#: PS3.16 Annex L, of the regions that the node is made for; any other is a body structure
_REGIONS = {
    "HEAD": Code("69536005", "SCT", "Head"),
    "CHEST": Code("43799004", "SCT", "Chest"),
}
_ANY_REGION = Code("123037004", "SCT", "Body structure")


def make_parametric_map(
    headers: Sequence[Dataset],
    anomaly_map: NDArray[np.float32],
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
) -> hd.pm.ParametricMap:
    """(depth, height, width) calibrated scores -> Parametric Map, not yet a file.

    Parameters
    ----------
    headers
        In the order of axis 0, one per slice, or one multi-frame header whose frames are in that
        order: `volume.build` hands them out so.
    anomaly_map
        Finite, on the source grid; 0 where nothing was scored.

    Raises
    ------
    ObjectError
        The map is not of the source's size.
    """
    first, expected = headers[0], provenance.grid_of(headers)
    if anomaly_map.shape != expected:
        raise ObjectError(f"the map is {anomaly_map.shape}, the source series {expected}")
    uids = provenance.identifiers(headers, score, "map")
    made = hd.pm.ParametricMap(
        source_images=provenance.sanitized_headers(headers),
        pixel_array=np.ascontiguousarray(anomaly_map, dtype=np.float32),
        series_instance_uid=uids.series_uid,
        series_number=series_number,
        sop_instance_uid=uids.instance_uid(1),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(anomaly_map)],
        voi_lut_transformations=[
            hd.VOILUTTransformation(window_center=score.threshold, window_width=2 * score.threshold)
        ],
        content_label="ANOMALY",
        content_description="Anomaly scores, research use only",
        content_creator_name=provenance.CREATOR_NAME,
        series_description=series_description[:64],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        image_flavor="VOLUME",
        derived_pixel_contrast="QUANTITY",
        **provenance.common_arguments(headers, score, node_id),
    )
    _name_anatomy(made, first)
    provenance.finish(made, first, score, uids)
    return made


def _mapping(anomaly_map: NDArray[np.float32]) -> hd.pm.RealWorldValueMapping:
    """Say that a pixel is the score itself, and of what the score is."""
    return hd.pm.RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation="Anomaly score, robust deviations above what is usual",
        unit=codes.UCUM.NoUnits,
        value_range=(float(anomaly_map.min()), float(anomaly_map.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=provenance.SCORE,
    )


def _name_anatomy(made: Dataset, source: Dataset) -> None:
    """Say which part of the body the frames are of; dcmqi's reader cannot do without."""
    stated, _ = body_parts.of_header(source)
    region = _REGIONS.get(stated or "", _ANY_REGION)
    anatomy = Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [hd.sr.CodedConcept(*region[:3])]
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
    provenance.name_body_part(made, source, stated or "")
