"""One C-STORE request, whoever opened its association: what is handed on, and what is answered.

A sender's association and one of our own that an archive sends on (C-GET) answer alike, since both
do it here.

References
----------
PS3.4 B.2.3 (statuses of C-STORE), C.4.3.2 (the storage sub-operations of C-GET); PS3.7 9.1.1.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import Protocol

from pydicom.dataset import Dataset
from pynetdicom.events import Event

from dicom_node.errors import InstanceRejected, NodeError, StoreError, StoreStatus
from dicom_node.series import ReceivedInstance

_log = logging.getLogger(__name__)

#: Error: Cannot understand (PS3.4 B.2.3, Cxxx); told apart from 0xC000, which blames the data set
HANDLER_FAILED = 0xC211
#: Error Comment (0000,0902) is LO (PS3.5 6.2)
_COMMENT_CHARS = 64
#: disk or quota: both pass when somebody makes room, so the sender is asked to come again
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageEvents(Protocol):
    """What is told of an association that carries instances; from the thread that serves it.

    Several associations call at once, so an implementation must be safe to call from many threads.
    """

    def association_opened(self, calling_ae_title: str, peer_host: str) -> int:
        """Record an association; returns its ledger number.

        The AE title is as the peer sent it, without padding: a claim, not an identity.
        """

    def association_closed(self, association_id: int) -> None:
        """Record its end: released, aborted or lost; called once, after its last instance."""

    def instance_received(self, received: ReceivedInstance) -> None:
        """Take one instance; returning means that it is safe, raising decides the status.

        Raises
        ------
        InstanceRejected
            The instance is at fault: its own status goes back (0xA900, 0xC000).
        StoreError
            There is no room or no ledger at the moment: 0xA700, the sender may come again.
        """

    def refused(self, calling_ae_title: str, peer_host: str, reason: str) -> None:
        """Record a refused association, SOP Class or instance; `reason` may quote the wire."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An instance that was not taken."""

    sop_instance_uid: str
    status: int
    #: for the sender, in a sentence without patient data
    comment: str
    #: whether the instance is at fault, and not the node
    of_instance: bool

    @property
    def reason(self) -> str:
        """What the ledger says: of a full disk one line per association, for it names no one."""
        whose = f" {self.sop_instance_uid}" if self.of_instance else "s"
        return f"instance{whose} refused with 0x{self.status:04X}: {self.comment}"

    def response(self) -> Dataset:
        """Return the status and its comment, as the library takes them."""
        answer = Dataset()
        answer.Status = self.status
        answer.ErrorComment = _as_long_string(self.comment)
        return answer


def received_instance(event: Event, number: int, calling_ae_title: str) -> ReceivedInstance:
    """Take the instance off the event, its data set as the bytes that came.

    Parameters
    ----------
    number
        Of the association, in the ledger.
    calling_ae_title
        Of the AE that sends it.
    """
    request = event.request
    return ReceivedInstance(
        association_id=number,
        calling_ae_title=calling_ae_title,
        affected_sop_class_uid=str(request.AffectedSOPClassUID),
        affected_sop_instance_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        encoded=event.encoded_dataset(include_meta=False),
    )


def refuse(event: Event, error: Exception) -> Refusal:
    """Return, and log, the status that tells the sender whose fault it is."""
    uid = str(event.request.AffectedSOPInstanceUID)
    status, comment = _status_of(error)
    if isinstance(error, NodeError) or status != HANDLER_FAILED:
        _log.warning("instance %s refused with 0x%04X: %s", uid, status, error)
    else:
        _log.error("instance %s: the node failed", uid, exc_info=error)
    return Refusal(uid, status, comment, isinstance(error, InstanceRejected))


def _status_of(error: Exception) -> tuple[int, str]:
    """Return status and comment; a fault of ours is not explained to the sender."""
    if isinstance(error, InstanceRejected):
        return int(error.status), str(error)
    if isinstance(error, StoreError):  # full or locked: the sender may try again later
        return int(StoreStatus.OUT_OF_RESOURCES), str(error)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return int(StoreStatus.OUT_OF_RESOURCES), "the disk of the node is full"
    return HANDLER_FAILED, "the node failed; its log says why"


def _as_long_string(text: str) -> str:
    r"""Make any text a value of LO: one line of ASCII, no backslash, at most 64 characters."""
    line = " ".join(text.split()).replace("\\", "/")
    return line.encode("ascii", "replace").decode("ascii")[:_COMMENT_CHARS].strip()
