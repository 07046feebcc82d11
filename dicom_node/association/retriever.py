"""The Retrieve SCU: a study or a series comes from an archive, to our receiver or on this line.

With C-MOVE the archive opens associations of its own to the acceptor, which answers as to any
sender. With C-GET it sends on the association that asked; each instance then goes the acceptor's
way: checked, synced, recorded, and only then answered. Either way one target has an association of
its own, so that a bad one costs no other and its series are complete when it ends.

What a peer says it completed is its word. What is here, the ledger knows.

References
----------
PS3.4 C.4.2 (C-MOVE), C.4.3 (C-GET), Tables C.4-2 and C.4-3 (statuses); PS3.7 9.1.3, 9.1.4 and
D.3.3.4 (role selection); PS3.8 9.3.2.2 (at most 128 presentation contexts).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_node.association import incoming
from dicom_node.association.answers import text_of
from dicom_node.association.incoming import Incoming
from dicom_node.association.operations import PENDING, SUCCESS, Response, meaning, responses
from dicom_node.association.requestor import Peer, open_association
from dicom_node.association.storing import Refusal, StorageEvents
from dicom_node.errors import AssociationLost, ContextNotAccepted, RetrieveFailed

_MOVE = StudyRootQueryRetrieveInformationModelMove
_GET = StudyRootQueryRetrieveInformationModelGet
#: done, with sub-operations that failed or warned; the one status of the kind (Table C.4-2)
_SOME_FAILED = 0xB000
_UNABLE, _DESTINATION_UNKNOWN = 0xA702, 0xA801
#: of the one operation of an association
_MESSAGE_ID = 1


@dataclass(frozen=True, slots=True)
class Target:
    """What is to come: a study, or one series of it."""

    study_instance_uid: str
    series_instance_uid: str = ""

    def identifier(self) -> Dataset:
        """Return the identifier, at the level of the target (PS3.4 C.4.2.2.1)."""
        ds = Dataset()
        ds.QueryRetrieveLevel = "SERIES" if self.series_instance_uid else "STUDY"
        ds.StudyInstanceUID = self.study_instance_uid
        if self.series_instance_uid:
            ds.SeriesInstanceUID = self.series_instance_uid
        return ds


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a peer may take; seconds."""

    #: for the connection and its negotiation
    answer_s: float
    #: until something has changed: a count of its responses, or an instance that came
    progress_s: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Sub-operations, as the peer counts them (PS3.7 9.1.4.1); None where it does not."""

    remaining: int | None = None
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None


@dataclass(frozen=True, slots=True)
class Retrieved:
    """How a retrieval ended, by what the peer says; `filed` and `refused` are our own word."""

    #: 0x0000, or 0xB000 when it says that something failed
    status: int
    counts: Counts
    #: Failed SOP Instance UID List (0008,0058)
    failed_uids: tuple[str, ...] = ()
    #: C-GET alone: what is durable and recorded, in order of arrival
    filed: tuple[str, ...] = ()
    #: C-GET alone: what was not taken, and why
    refused: tuple[Refusal, ...] = ()


OnProgress = Callable[[Counts], None]


def move(
    peer: Peer,
    ae_title: str,
    target: Target,
    waits: Waits,
    *,
    where: str,
    on_progress: OnProgress = lambda _counts: None,
) -> Retrieved:
    """Have a peer send a target to this node's receiver, which must be running.

    Parameters
    ----------
    ae_title
        Of this node, which asks, and is the destination too.
    where
        Host and port of the receiver, for what is said when the peer does not know them.
    on_progress
        Gets the counts of each response.

    Returns
    -------
    What the peer says; an unknown target is a success without a sub-operation.

    Raises
    ------
    AssociationRefused, AssociationLost
        There was no association, or it ended, or nothing happened for too long. What had come by
        then is here.
    ContextNotAccepted
        The peer answers no C-MOVE.
    RetrieveFailed
        It answered with a failure; ``status`` is that of the response.
    """
    contexts = [build_context(_MOVE)]
    with open_association(peer, ae_title, contexts, waits.answer_s) as assoc:
        if not assoc.accepted_contexts:
            raise ContextNotAccepted(
                f"{peer} answers no C-MOVE (Study Root): enable it there, or set "
                'retrieve = "get" for this archive',
                destination=peer.name,
            )
        running = _Running(assoc, peer, "C-MOVE", waits.progress_s, on_progress)

        def send() -> Iterator[Response]:
            answers: Iterator[Response] = assoc.send_c_move(
                target.identifier(), ae_title, _MOVE, _MESSAGE_ID
            )
            return answers

        hints = {
            _DESTINATION_UNKNOWN: f"it does not know where to send; add this node there, {where}",
            _UNABLE: f"it could not send; check that this node runs, and its entry there: {where}",
        }
        return running.to_end(send, hints)


def get(
    peer: Peer,
    ae_title: str,
    target: Target,
    waits: Waits,
    events: StorageEvents,
    *,
    on_progress: OnProgress = lambda _counts: None,
) -> Retrieved:
    """Have a peer send a target on the association that asks, and file it as the receiver does.

    CT and MR images come, classic, enhanced and legacy converted; the peer counts others as failed.
    Other parameters are those of `move`.

    Parameters
    ----------
    events
        The node behind it, as behind the acceptor.

    Raises
    ------
    AssociationRefused, AssociationLost, RetrieveFailed
        As `move`.
    ContextNotAccepted
        The peer answers no C-GET, or sends no image on it.
    StoreError
        The ledger does not answer: nothing was asked for.
    """
    line = Incoming(peer, events)
    handlers = [(evt.EVT_C_STORE, line.on_c_store)]
    with (
        open_association(
            peer, ae_title, incoming.contexts(), waits.answer_s, handlers, incoming.roles()
        ) as assoc,
        line.recorded(),
    ):
        incoming.check_accepted(peer, assoc)
        running = _Running(assoc, peer, "C-GET", waits.progress_s, on_progress, line)

        def send() -> Iterator[Response]:
            answers: Iterator[Response] = assoc.send_c_get(target.identifier(), _GET, _MESSAGE_ID)
            return answers

        return running.to_end(send, {})


class _Running:
    """One retrieval under way."""

    def __init__(
        self,
        assoc: Association,
        peer: Peer,
        what: str,
        wait_s: float,
        on_progress: OnProgress,
        line: Incoming | None = None,
    ) -> None:
        self._assoc = assoc
        self._peer = peer
        self._what = what
        self._wait_s = wait_s
        self._on_progress = on_progress
        self._line = line

    def to_end(self, send: Callable[[], Iterator[Response]], hints: dict[int, str]) -> Retrieved:
        """Ask, and follow the responses to the last; `hints` say what to do about a status."""
        # a peer may answer nothing until it has done everything: pending responses are optional
        self._assoc.dimse_timeout = self._wait_s
        before, changed = None, time.monotonic()
        for status, identifier in responses(self._assoc, self._peer, self._what, send):
            counts = _counts(status)
            self._on_progress(counts)
            if status.Status not in PENDING:
                return self._ended(status, counts, identifier, hints)
            state = counts, 0 if self._line is None else self._line.n_came
            if state != before:
                before, changed = state, time.monotonic()
            if time.monotonic() - changed > self._wait_s:
                break
        raise AssociationLost(
            f"{self._peer}: {self._what} has made no progress for {self._wait_s:g} s",
            destination=self._peer.name,
        )

    def _ended(
        self, status: Dataset, counts: Counts, identifier: Dataset | None, hints: dict[int, str]
    ) -> Retrieved:
        code = int(status.Status)
        if code != SUCCESS and code >> 12 != _SOME_FAILED >> 12:
            hint = f": {hints[code]}" if code in hints else ""
            raise RetrieveFailed(
                f"{self._peer} answered {self._what} with {meaning(status)}{hint}",
                destination=self._peer.name,
                status=code,
            )
        failed = "" if identifier is None else text_of(identifier, "FailedSOPInstanceUIDList")
        uids = tuple(uid for uid in failed.split("\\") if uid)
        line = self._line
        if line is None:
            return Retrieved(code, counts, uids)
        return Retrieved(code, counts, uids, tuple(line.filed), tuple(line.refused))


def _counts(status: Dataset) -> Counts:
    def of(keyword: str) -> int | None:
        value = status.get(f"NumberOf{keyword}Suboperations")
        return None if value is None else int(value)

    return Counts(of("Remaining"), of("Completed"), of("Failed"), of("Warning"))
