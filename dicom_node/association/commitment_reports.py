"""Storage commitment on the wire, the other way: being asked, and reporting.

A sender asks whether this node is responsible for what it sent (N-ACTION), and is told in an
N-EVENT-REPORT: on its own association while that is open and quiet, else on a new one to it.

References
----------
PS3.4 J.3 (Storage Commitment Push Model), PS3.7 10.1.1 and 10.1.4.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_node.association.commitment import (
    INVALID_ARGUMENT,
    NO_RESOURCES,
    PUSH_MODEL_INSTANCE,
    REQUEST,
    SUCCESS,
    Reference,
    Report,
    item_of,
)
from dicom_node.association.requestor import Peer, open_association
from dicom_node.errors import (
    AssociationLost,
    CommitmentRefused,
    ContextNotAccepted,
    NodeError,
)

#: Event Type ID of a report: all is committed to, or something is not (PS3.4 J.3.3)
_ALL, _NOT_ALL = 1, 2
_NO_SUCH_INSTANCE, _NO_SUCH_ACTION = 0x0112, 0x0123
#: a sender that asks nothing else for so long waits for its report
_QUIET_S = 1.0
#: ... and is told elsewhere when its association is busy for so long
_BUSY_S = 5.0
#: for the answer to a report
_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """One N-ACTION of a sender (PS3.4 Table J.3-1)."""

    calling_ae_title: str
    peer_host: str
    transaction_uid: str
    references: tuple[Reference, ...]


def take_request(event: Event, on_request: Callable[[Request], None]) -> int:
    """Answer an N-ACTION: 0x0000 when the request is recorded, for the report is then owed.

    Parameters
    ----------
    on_request
        Records it; raises a NodeError where it cannot.
    """
    if event.request.RequestedSOPInstanceUID != PUSH_MODEL_INSTANCE:
        return _NO_SUCH_INSTANCE
    if event.action_type != REQUEST:
        return _NO_SUCH_ACTION
    try:
        request = _request_of(event)
    except (AttributeError, ValueError, TypeError, InvalidDicomError):
        return INVALID_ARGUMENT
    try:
        on_request(request)
    except NodeError:
        return NO_RESOURCES
    return SUCCESS


def _request_of(event: Event) -> Request:
    """Return the Action Information as values; raises where it lacks something."""
    ds, requestor = event.action_information, event.assoc.requestor
    references = tuple(
        Reference(str(UID(item.ReferencedSOPClassUID)), str(UID(item.ReferencedSOPInstanceUID)))
        for item in ds.ReferencedSOPSequence
    )
    transaction_uid = str(ds.TransactionUID)
    if not references or not transaction_uid:
        raise ValueError("no transaction or no instance")
    return Request(requestor.ae_title, requestor.address, transaction_uid, references)


def information(report: Report, classes: dict[str, str]) -> Dataset:
    """Return the Event Information (PS3.4 Table J.3-2).

    Parameters
    ----------
    classes
        SOP Instance UID -> SOP Class UID, as the request had them.
    """
    ds = Dataset()
    ds.TransactionUID = report.transaction_uid
    if report.committed:
        ds.ReferencedSOPSequence = [_item(classes, uid) for uid in report.committed]
    if report.failed:
        ds.FailedSOPSequence = [_item(classes, uid, reason) for uid, reason in report.failed]
    return ds


def _item(classes: dict[str, str], uid: str, reason: int | None = None) -> Dataset:
    item = item_of(Reference(classes[uid], uid))
    if reason is not None:
        item.FailureReason = reason
    return item


def event_type(ds: Dataset) -> int:
    """Return the Event Type ID that belongs to an Event Information."""
    return _NOT_ALL if "FailedSOPSequence" in ds else _ALL


def send_report(peer: Peer, calling_ae_title: str, ds: Dataset, timeout_s: float) -> None:
    """Report on a new association, in the role of the SCP.

    Raises
    ------
    AssociationRefused, AssociationLost
        There was no association, or it ended before the answer.
    ContextNotAccepted
        The peer takes no reports.
    CommitmentRefused
        It answered with a failure; ``status`` is that of the response.
    """
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    contexts = [build_context(StorageCommitmentPushModel)]
    with open_association(peer, calling_ae_title, contexts, timeout_s, roles=[role]) as assoc:
        if not assoc.accepted_contexts:
            raise ContextNotAccepted(
                f"{peer} takes no storage commitment reports, though it asked for one",
                destination=peer.name,
            )
        try:
            answer, _ = assoc.send_n_event_report(
                ds, event_type(ds), StorageCommitmentPushModel, PUSH_MODEL_INSTANCE
            )
        except RuntimeError as error:  # it ended between the question and the call
            raise _lost(peer) from error
        if "Status" not in answer:
            raise _lost(peer)
        if answer.Status != SUCCESS:
            raise CommitmentRefused(
                f"{peer} answered the storage commitment report with 0x{answer.Status:04X}",
                destination=peer.name,
                status=int(answer.Status),
            )


def _lost(peer: Peer) -> AssociationLost:
    return AssociationLost(
        f"{peer} did not answer the storage commitment report", destination=peer.name
    )


class Line:
    """The association that a sender asked on, as a way to report to it.

    Made once, while the first N-ACTION is being handled. The library's own call would take whatever
    comes next for the answer, an instance too: here the association goes on serving, and only what
    is sent is kept apart, so that a report and an answer to the sender do not mix on the wire.
    """

    def __init__(self, event: Event) -> None:
        self._assoc: Association = event.assoc
        self._context = event.context
        self._n_messages = 0
        self._answered = threading.Event()
        self._status: int | None = None
        #: of the report that was sent; 0: none yet
        self._message_id = 0
        self._pending: list[int] = []
        self._told = True
        self._lock = threading.Lock()
        lock, send = threading.Lock(), self._assoc.dimse.send_msg

        def send_alone(primitive: Any, context_id: int) -> None:  # noqa: ANN401 - the library's own
            with lock:
                send(primitive, context_id)

        self._assoc.dimse.send_msg = send_alone
        self._assoc.bind(evt.EVT_DIMSE_RECV, self._on_message)

    def owe(self, number: int) -> bool:
        """Add a report; returns whether nobody is at work on those before it."""
        with self._lock:
            self._pending.append(number)
            was_told, self._told = self._told, False
        return was_told

    def owed(self) -> list[int]:
        """Take the reports that are owed; without one the work is over."""
        with self._lock:
            numbers, self._pending = self._pending, []
            self._told = not numbers
        return numbers

    def is_quiet(self) -> bool:
        """Wait until the sender asks nothing else; False when it ends or goes on working."""
        deadline = time.monotonic() + _BUSY_S
        while time.monotonic() < deadline:
            before = self._n_messages
            time.sleep(_QUIET_S)
            if not self._assoc.is_established:
                return False
            if self._n_messages == before:
                return True
        return False

    def report(self, ds: Dataset, number: int) -> bool:
        """Send report `number`; returns whether the sender answered it with success."""
        syntax = UID(self._context.transfer_syntax)
        encoded = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        if encoded is None:
            return False
        request = N_EVENT_REPORT()
        # Message ID (0000,0110) is US; a late answer to an earlier report is not this one's
        request.MessageID = self._message_id = number % 65535 + 1
        self._answered.clear()
        self._status = None
        request.AffectedSOPClassUID = StorageCommitmentPushModel
        request.AffectedSOPInstanceUID = PUSH_MODEL_INSTANCE
        request.EventTypeID = event_type(ds)
        request.EventInformation = BytesIO(encoded)
        self._assoc.dimse.send_msg(request, self._context.context_id)
        deadline = time.monotonic() + _ANSWER_S
        while not self._answered.wait(0.1):
            if time.monotonic() > deadline or not self._assoc.is_established:
                break
        return self._status == SUCCESS

    def _on_message(self, event: Event) -> None:
        self._n_messages += 1
        # N-EVENT-REPORT-RSP (PS3.7 Table E.1-1)
        command = event.message.command_set
        if command.CommandField == 0x8100 and (
            command.MessageIDBeingRespondedTo == self._message_id
        ):
            self._status = int(command.Status)
            self._answered.set()
