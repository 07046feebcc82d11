"""Storage commitment on the wire: asking for it, and what a report says.

A destination that commits takes the responsibility for what it was sent (PS3.4 Annex J, Push
Model). The request is an N-ACTION; the answer is an N-EVENT-REPORT that comes when it comes, on the
same association or on a new one to the acceptor.

References
----------
PS3.4 J.3 (Storage Commitment Push Model), PS3.7 10.1.1 and 10.1.4, PS3.3 C.14.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_node.association.requestor import Peer, open_association
from dicom_node.errors import (
    AssociationLost,
    CommitmentRefused,
    ContextNotAccepted,
    NodeError,
)

#: the well-known SOP Instance that every request and report is about (PS3.4 J.3.5)
PUSH_MODEL_INSTANCE = UID("1.2.840.10008.1.20.1.1")
#: Action Type ID of a request (PS3.4 J.3.2)
REQUEST = 1
#: how long an association is kept open for a report on it
_REPORT_S = 2.0
#: statuses of N-EVENT-REPORT and N-ACTION responses (PS3.7 10.1.1.1.8, 10.1.4.1.10)
SUCCESS, INVALID_ARGUMENT, NO_RESOURCES = 0x0000, 0x0115, 0x0213


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance, as a request or a report names it."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Report:
    """What an N-EVENT-REPORT says of the instances of one transaction (PS3.4 J.3.3)."""

    transaction_uid: str
    committed: tuple[str, ...]
    #: SOP Instance UID and Failure Reason (0008,1197)
    failed: tuple[tuple[str, int], ...]


#: takes a report; returns whether its transaction is one of ours
OnReport = Callable[[Report], bool]


def ask(
    peer: Peer,
    calling_ae_title: str,
    transaction_uid: str,
    references: Sequence[Reference],
    timeout_s: float,
    on_report: OnReport,
) -> None:
    """Ask a peer to commit to instances that it has stored; returns when it has taken the request.

    Parameters
    ----------
    transaction_uid
        New for each request.
    timeout_s
        For the connection, and again for each answer.
    on_report
        Gets the report if it comes on this association, from another thread, within two seconds;
        otherwise it comes to the acceptor.

    Raises
    ------
    AssociationRefused, AssociationLost
        There was no association, or it ended before the answer.
    ContextNotAccepted
        The peer knows no storage commitment.
    CommitmentRefused
        It answered with a failure; ``status`` is that of the N-ACTION response.
    """
    answered, left = threading.Event(), threading.Event()

    def received(event: Event) -> tuple[int, None]:
        answer = take_report(event, on_report)
        answered.set()
        return answer

    def sent(event: Event) -> None:
        # nothing may follow a release request (PS3.8 7.2.2): it waits until the answer has left
        if answered.is_set() and isinstance(event.pdu, P_DATA_TF):
            left.set()

    handlers = [(evt.EVT_N_EVENT_REPORT, received), (evt.EVT_PDU_SENT, sent)]
    contexts = [build_context(StorageCommitmentPushModel)]
    with open_association(peer, calling_ae_title, contexts, timeout_s, handlers) as assoc:
        if not assoc.accepted_contexts:
            raise ContextNotAccepted(
                f"{peer} does not offer storage commitment: enable it there, or set "
                "commitment = false for this destination",
                destination=peer.name,
            )
        _request(assoc, peer, _request_of(transaction_uid, references))
        if not left.wait(_REPORT_S) and answered.is_set():
            left.wait(timeout_s)


def take_report(event: Event, on_report: OnReport) -> tuple[int, None]:
    """Answer an N-EVENT-REPORT request: 0x0000 only when what it says is recorded.

    An unknown transaction is an invalid argument; a ledger that does not answer is a lack of
    resources, and the peer may repeat the report.
    """
    try:
        report = _report_of(event.event_information)
    except (AttributeError, ValueError, TypeError, InvalidDicomError):
        return INVALID_ARGUMENT, None
    try:
        known = on_report(report)
    except NodeError:
        return NO_RESOURCES, None
    return (SUCCESS if known else INVALID_ARGUMENT), None


def _request(assoc: Association, peer: Peer, information: Dataset) -> None:
    """Send the N-ACTION; returns when it was answered with success or a warning."""
    try:
        answer, _ = assoc.send_n_action(
            information, REQUEST, StorageCommitmentPushModel, PUSH_MODEL_INSTANCE
        )
    except RuntimeError as error:  # the association ended between the question and the call
        raise _lost(peer) from error
    if "Status" not in answer:
        raise _lost(peer)
    status = int(answer.Status)
    # of N-ACTION every other status is a failure (PS3.7 10.1.4.1.10, Annex C)
    if status not in (SUCCESS, 0x0001) and status >> 12 != 0xB:
        comment = str(answer.get("ErrorComment", "")).strip()
        raise CommitmentRefused(
            f"{peer} answered the storage commitment request with 0x{status:04X}"
            + (f" ({comment})" if comment else ""),
            destination=peer.name,
            status=status,
        )


def _lost(peer: Peer) -> AssociationLost:
    return AssociationLost(
        f"{peer} did not answer the storage commitment request", destination=peer.name
    )


def _request_of(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Return the Action Information (PS3.4 Table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = [item_of(reference) for reference in references]
    return ds


def item_of(reference: Reference) -> Dataset:
    """Return an instance as an item of a Referenced or Failed SOP Sequence (PS3.3 Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item


def _report_of(ds: Dataset) -> Report:
    """Return the Event Information (PS3.4 Table J.3-2) as values.

    Raises AttributeError, ValueError or TypeError where it lacks something.
    """
    return Report(
        str(ds.TransactionUID),
        tuple(str(item.ReferencedSOPInstanceUID) for item in _items(ds, "ReferencedSOPSequence")),
        tuple(
            (str(item.ReferencedSOPInstanceUID), int(item.FailureReason))
            for item in _items(ds, "FailedSOPSequence")
        ),
    )


def _items(ds: Dataset, keyword: str) -> Sequence[Any]:
    return ds.get(keyword) or ()
