"""Rolling reference batch: who is in it, and the frozen batch of one score.

A study is judged by its distance to other studies of its protocol, so the batch decides what is
usual. It rolls: usual studies are admitted after they were scored, unusual ones are kept out, the
oldest leave. Each score is made with a frozen batch whose name is its content. Who is in the batch,
rows alone say; what is kept of a subject lies in :mod:`dicom_node.reference_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dicom_node.config import Protocol, digest
from dicom_node.errors import InsufficientReference
from dicom_node.store import reference_table
from dicom_node.store.database import Database
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED, Member

#: a study above this percentile of the batch's own scores is not admitted: that keeps out about one
#: usual study of twenty, which costs less than an abnormal one that hides its like
ADMISSION_PERCENTILE = 95.0


@dataclass(frozen=True, slots=True)
class Batch:
    """A frozen reference batch; its version is the digest of its content."""

    version: str
    subjects: tuple[str, ...]


class ReferenceBatch:
    """Who is in the reference batch of one protocol, in one token space.

    The protocol's ``min_reference`` and ``max_reference`` bound it, in patients.
    """

    def __init__(self, database: Database, protocol: Protocol, fingerprint: str) -> None:
        self._database = database
        self._protocol = protocol
        self._fingerprint = fingerprint

    def add_candidate(self, subject: str, uid: str, patient_key: str, at: datetime) -> None:
        """Make a tokenized subject known; it serves while the batch is founded.

        One that is known already keeps its state; earlier revisions of its series leave.
        """
        entry = Member(subject, uid, patient_key, CANDIDATE, "tokenized, not yet scored")
        with self._database.begin() as db:
            reference_table.add_candidate(db, self._protocol.name, self._fingerprint, entry, at)

    def snapshot(self, subject: str, patient_key: str, at: datetime) -> Batch:
        """Freeze the batch that `subject` is scored with: one subject per other patient.

        Candidates serve until enough are admitted: a new protocol is founded by its first studies,
        each scored against the others. The patient's own earlier studies never serve: the lesion
        that was there before would be the nearest match, and hide the one that is there now.

        Raises
        ------
        InsufficientReference
            Fewer than ``min_reference`` subjects of other patients; the message says how many.
        """
        found = self._members((ADMITTED,), subject, patient_key)
        if len(found) < self._protocol.min_reference:
            found = self._members((ADMITTED, CANDIDATE), subject, patient_key)
        if len(found) < self._protocol.min_reference:
            raise InsufficientReference(
                f"{len(found)} of {self._protocol.min_reference} reference subjects of protocol "
                f"{self._protocol.name!r}; the study is scored by itself when there are enough"
            )
        subjects = tuple(sorted(found[-self._protocol.max_reference :]))
        version = f"{self._protocol.name}-{digest(self._fingerprint, subjects)}"
        with self._database.begin() as db:
            reference_table.freeze(
                db, version, self._protocol.name, self._fingerprint, subjects, at
            )
        return Batch(version, subjects)

    def _members(self, states: Sequence[str], subject: str, patient_key: str) -> list[str]:
        """Return members, oldest first, one per patient, without the subject and its patient."""
        with self._database.read() as db:
            found = reference_table.members(db, self._protocol.name, self._fingerprint, states)
        return [
            entry.subject
            for entry in _newest_per_patient(found)
            if entry.patient_key != patient_key and entry.subject != subject
        ]

    def ready(self) -> bool:
        """Return whether every member could be scored now, whoever it is.

        The job that waits for the batch belongs to a member, who may not serve in its own batch:
        hence one patient more than the batch needs.
        """
        states = (ADMITTED, CANDIDATE)
        return len(self._members(states, "", "")) > self._protocol.min_reference

    def decide(self, subject: str, percentile: float) -> str:
        """Admit a scored subject, or not, by its percentile; returns the reason.

        While the batch is being founded nobody is turned away: a study above the limit goes on
        serving as a candidate until enough others are admitted, or a small site would never get
        its first batch. A full batch loses its oldest subject.
        """
        where = (self._protocol.name, self._fingerprint)
        with self._database.begin() as db:
            left = reference_table.members(db, *where, (EVICTED,))
            if any(entry.subject == subject for entry in left):
                # while it was scored a newer revision of its series came: that one counts
                return "not admitted: it has left the batch"
            admitted = reference_table.members(db, *where, (ADMITTED,))
            state, reason = self._judged(percentile, len(admitted))
            reference_table.set_state(db, *where, subject, state, reason)
            admitted = reference_table.members(db, *where, (ADMITTED,))
            for leaving, why in _leaving(admitted, self._protocol.max_reference):
                reference_table.set_state(db, *where, leaving, EVICTED, why)
        return reason

    def _judged(self, percentile: float, n_admitted: int) -> tuple[str, str]:
        """Return the state that a percentile earns, and why."""
        limit = f"percentile {percentile:.0f}, limit {ADMISSION_PERCENTILE:.0f}"
        if percentile <= ADMISSION_PERCENTILE:
            return ADMITTED, f"admitted: {limit}"
        if n_admitted < self._protocol.min_reference:
            return CANDIDATE, f"not admitted ({limit}); serves while the batch is founded"
        return EXCLUDED, f"kept out: {limit}"


def _leaving(admitted: Sequence[Member], longest: int) -> list[tuple[str, str]]:
    """Return which of the admitted leave, oldest first, and why.

    Only the newest study of a patient serves. The others would take the places of other patients:
    a ward that scans one patient daily would empty the batch.
    """
    serving = _newest_per_patient(admitted)
    older = [entry for entry in admitted if entry not in serving]
    oldest = serving[: max(0, len(serving) - longest)]
    return [
        *((entry.subject, "a newer study of the patient is in the batch") for entry in older),
        *((entry.subject, "the batch is full: the oldest leaves") for entry in oldest),
    ]


def _newest_per_patient(found: Sequence[Member]) -> list[Member]:
    """Keep of each patient the last entry; the order stays."""
    newest = {entry.patient_key: entry.subject for entry in found}
    return [entry for entry in found if newest[entry.patient_key] == entry.subject]
