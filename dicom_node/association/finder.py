"""The Query SCU: which instances of a series a peer knows, in the study they belong to.

References
----------
PS3.4 C.4.1 (C-FIND), C.6.2 (Study Root), C.2.2.2 (matching); PS3.7 9.1.2.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from dicom_node.association.requestor import Peer, open_association
from dicom_node.errors import AssociationLost, ContextNotAccepted, QueryFailed

#: the last response; a match, and one whose optional keys were not all supported (PS3.4 C.4.1.1.4)
_SUCCESS, _PENDING = 0x0000, (0xFF00, 0xFF01)


def find_instances(
    peer: Peer, calling_ae_title: str, series: list[tuple[str, str]], timeout_s: float
) -> dict[tuple[str, str], set[str]]:
    """Return what the peer knows of each series, over one association.

    Parameters
    ----------
    series
        Study and Series Instance UID: a series that lies in another study there is not found.

    Returns
    -------
    Study and Series Instance UID -> the SOP Instance UIDs; empty sets for what it does not know.

    Raises
    ------
    AssociationRefused, AssociationLost
        There was no association, or it ended before the last answer.
    ContextNotAccepted
        The peer answers no queries of the Study Root model.
    QueryFailed
        It answered with a failure; ``status`` is that of the response.
    """
    contexts = [build_context(StudyRootQueryRetrieveInformationModelFind)]
    with open_association(peer, calling_ae_title, contexts, timeout_s) as assoc:
        if not assoc.accepted_contexts:
            raise ContextNotAccepted(
                f"{peer} answers no queries (Study Root C-FIND): enable them there, or set "
                "verify = false for this destination",
                destination=peer.name,
            )
        return {of: _instances(assoc, peer, *of) for of in series}


def _instances(assoc: Association, peer: Peer, study_uid: str, series_uid: str) -> set[str]:
    """Return the SOP Instance UIDs of one series."""
    found = set()
    try:
        for status, match in assoc.send_c_find(
            _query(study_uid, series_uid), StudyRootQueryRetrieveInformationModelFind
        ):
            if "Status" not in status:
                raise _lost(peer)
            if status.Status in _PENDING and match is not None:
                found.add(str(match.get("SOPInstanceUID", "")))
            elif status.Status != _SUCCESS:
                raise QueryFailed(
                    f"{peer} answered C-FIND with 0x{status.Status:04X}",
                    destination=peer.name,
                    status=int(status.Status),
                )
    except RuntimeError as error:  # the association ended between two questions
        raise _lost(peer) from error
    return found


def _query(study_uid: str, series_uid: str) -> Dataset:
    """Return the identifier: the unique keys of the levels above, and universal matching."""
    ds = Dataset()
    ds.QueryRetrieveLevel = "IMAGE"
    ds.StudyInstanceUID = study_uid
    ds.SeriesInstanceUID = series_uid
    ds.SOPInstanceUID = ""
    return ds


def _lost(peer: Peer) -> AssociationLost:
    return AssociationLost(f"{peer} did not answer a query (C-FIND)", destination=peer.name)
