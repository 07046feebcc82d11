"""The Query SCU: which studies, series and instances a peer knows.

Each level is asked for within the one above it; no relational queries, hence nothing to negotiate.

References
----------
PS3.4 C.4.1 (C-FIND), C.6.2 (Study Root), C.2.2.2 (matching); PS3.7 9.1.2 and 9.3.2.3 (C-CANCEL).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from dicom_node.association.answers import text_of
from dicom_node.association.operations import PENDING, SUCCESS, Response, meaning, responses
from dicom_node.association.query import (
    SeriesQuery,
    SeriesRecord,
    StudyQuery,
    StudyRecord,
)
from dicom_node.association.requestor import Peer, open_association
from dicom_node.errors import AssociationLost, ContextNotAccepted, QueryFailed

_Record = TypeVar("_Record", StudyRecord, SeriesRecord)
#: takes a match; returns False when it wants no more
_Take = Callable[[Dataset], bool]
_MODEL = StudyRootQueryRetrieveInformationModelFind
#: a match whose optional keys were not all supported (PS3.4 C.4.1.1.4)
_KEYS_UNSUPPORTED = 0xFF01
#: matches that are kept at most unless somebody says otherwise
LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Found(Generic[_Record]):
    """What a query found."""

    records: tuple[_Record, ...]
    #: there is more than the limit; the rest was cancelled
    cut: bool = False
    #: the peer said of a match that it does not support all keys (0xFF01)
    keys_unsupported: bool = False


def find_studies(
    peer: Peer, calling_ae_title: str, query: StudyQuery, timeout_s: float, *, limit: int = LIMIT
) -> Found[StudyRecord]:
    """Return the studies that are as asked for, each once, in the peer's order.

    Parameters
    ----------
    timeout_s
        For the connection, and again for each answer.
    limit
        Of studies; beyond it the query is cancelled.

    Raises
    ------
    AssociationRefused, AssociationLost, ContextNotAccepted, QueryFailed
        As `find_instances`.
    """
    kept: _Kept[StudyRecord] = _Kept(limit)
    with _asking(peer, calling_ae_title, timeout_s) as line:
        line.ask(query.identifier(), lambda ds: kept.add(query.record_of(ds)))
    return kept.found(line)


def find_series(
    peer: Peer,
    calling_ae_title: str,
    study_instance_uids: Sequence[str],
    query: SeriesQuery,
    timeout_s: float,
    *,
    limit: int = LIMIT,
) -> Found[SeriesRecord]:
    """Return the series of these studies that are as asked for, over one association.

    One question per study; parameters, limit (of all series together) and errors are those of
    `find_studies`.
    """
    kept: _Kept[SeriesRecord] = _Kept(limit)
    with _asking(peer, calling_ae_title, timeout_s) as line:
        for uid in study_instance_uids:
            if not kept.cut:
                line.ask(query.identifier(uid), _taker(query, uid, kept))
    return kept.found(line)


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
    with _asking(peer, calling_ae_title, timeout_s) as line:
        return {of: _instances(line, *of) for of in series}


def _instances(line: _Line, study_uid: str, series_uid: str) -> set[str]:
    """Return the SOP Instance UIDs of one series: unique keys of the levels above, all below."""
    ds = Dataset()
    ds.QueryRetrieveLevel = "IMAGE"
    ds.StudyInstanceUID = study_uid
    ds.SeriesInstanceUID = series_uid
    ds.SOPInstanceUID = ""
    found: set[str] = set()

    def take(match: Dataset) -> bool:
        found.add(text_of(match, "SOPInstanceUID"))
        return True

    line.ask(ds, take)
    return found - {""}


def _taker(query: SeriesQuery, study_uid: str, kept: _Kept[SeriesRecord]) -> _Take:
    return lambda ds: kept.add(query.record_of(ds, study_uid))


class _Kept(Generic[_Record]):
    """The records so far."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # by their UIDs: some peers repeat a study for each of its modalities
        self._records: dict[tuple[str, ...], _Record] = {}
        self.cut = False

    def add(self, record: _Record | None) -> bool:
        """Keep a record unless it is None; False when there are too many."""
        if record is None or record.key in self._records:
            return True
        if len(self._records) >= self._limit:
            self.cut = True
            return False
        self._records[record.key] = record
        return True

    def found(self, line: _Line) -> Found[_Record]:
        return Found(tuple(self._records.values()), self.cut, line.keys_unsupported)


class _Line:
    """An association that questions go over, one after the other."""

    def __init__(self, assoc: Association, peer: Peer, timeout_s: float) -> None:
        self._assoc = assoc
        self._peer = peer
        self._timeout_s = timeout_s
        self._numbers = count(1)
        self.keys_unsupported = False

    def ask(self, identifier: Dataset, take: _Take) -> None:
        """Send one query and hand each match to `take`; raises QueryFailed, AssociationLost."""
        # Message ID (0000,0110) is US
        number = next(self._numbers) % 65535 + 1

        def send() -> Iterator[Response]:
            answers: Iterator[Response] = self._assoc.send_c_find(identifier, _MODEL, number)
            return answers

        answers = responses(self._assoc, self._peer, "a query (C-FIND)", send)
        for status, match in answers:
            if status.Status not in PENDING:
                self._ended(status)
                return
            self.keys_unsupported |= status.Status == _KEYS_UNSUPPORTED
            # what cannot be decoded is no match, and costs only itself
            if match is not None and not take(match):
                self._cancel(number, answers)
                return

    def _ended(self, status: Dataset) -> None:
        if status.Status != SUCCESS:
            raise QueryFailed(
                f"{self._peer} answered C-FIND with {meaning(status)}",
                destination=self._peer.name,
                status=int(status.Status),
            )

    def _cancel(self, number: int, answers: Iterator[Response]) -> None:
        """Cancel, and read to the end of the answers; a peer that does not end is hung up on."""
        deadline = time.monotonic() + self._timeout_s
        try:
            self._assoc.send_c_cancel(number, query_model=_MODEL)
            for status, _ in answers:
                if status.Status not in PENDING:
                    return
                if time.monotonic() > deadline:
                    break
        except (AssociationLost, RuntimeError):
            pass  # what was wanted has come
        if self._assoc.is_established:
            self._assoc.abort()


@contextmanager
def _asking(peer: Peer, calling_ae_title: str, timeout_s: float) -> Iterator[_Line]:
    """Open an association for queries; raises ContextNotAccepted where the peer takes none."""
    contexts = [build_context(_MODEL)]
    with open_association(peer, calling_ae_title, contexts, timeout_s) as assoc:
        if not assoc.accepted_contexts:
            raise ContextNotAccepted(
                f"{peer} answers no queries (Study Root C-FIND): enable them there, or, of a "
                "destination, set verify = false",
                destination=peer.name,
            )
        yield _Line(assoc, peer, timeout_s)
