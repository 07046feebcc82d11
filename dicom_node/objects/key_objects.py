"""What is worth a look of all that was sent -> Key Object Selection: a bookmark in the study.

References
----------
PS3.3 A.35.4 (Key Object Selection Document IOD); PS3.16 TID 2010, CID 7010.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.findings import ScoreSummary
from dicom_node.identity import RESEARCH_ONLY
from dicom_node.objects import provenance


def make_key_objects(
    headers: Sequence[Dataset],
    objects: Sequence[Dataset],
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
) -> hd.ko.KeyObjectSelectionDocument | None:
    """Return the document that names `objects` as of interest; None where there is none of them.

    Parameters
    ----------
    headers
        Of the source series, which says whose study it is.
    objects
        Result objects of the study; their headers are enough.
    """
    if not objects:
        return None
    uids = provenance.identifiers(headers, score, "key objects")
    made = hd.ko.KeyObjectSelectionDocument(
        evidence=list(objects),
        content=hd.ko.KeyObjectSelection(
            codes.DCM.OfInterest,
            referenced_objects=list(objects),
            observer_device_context=provenance.observer(node_id),
            description=f"Suspected anomalies. {RESEARCH_ONLY}",
        ),
        series_instance_uid=uids.series_uid,
        series_number=series_number,
        sop_instance_uid=uids.instance_uid(1),
        instance_number=1,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=series_description[:64],
        **provenance.common_arguments(headers, score, node_id),
    )
    provenance.finish(made, headers[0], score, uids)
    return made
