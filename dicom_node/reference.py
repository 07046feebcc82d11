"""Rolling reference batch: who is in it, and the frozen batch of one score.

A study is judged by its distance to other studies of its protocol, so the batch decides what is
usual. It rolls: usual studies are admitted after they were scored, unusual ones are kept out, and
from a full batch others leave (:mod:`dicom_node.admission` has the rules). Each score is made with
a frozen batch whose name is its content. Who is in the batch, rows alone say; what is kept of a
subject lies in :mod:`dicom_node.reference_files`; what people decide of it stands in
:mod:`dicom_node.reference_verbs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

from dicom_node import admission, clock
from dicom_node.admission import Freezes, Redundancy, Standing
from dicom_node.config import digest
from dicom_node.errors import InsufficientReference
from dicom_node.protocol_config import Protocol
from dicom_node.store import admission_table, reference_table
from dicom_node.store.admission_table import Change, Decision
from dicom_node.store.database import Database
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED, RULE, Member

_NEW_REVISION = "late instances made a new revision of the series"
_VERBS = {ADMITTED: "admit", CANDIDATE: "defer", EXCLUDED: "keep out", EVICTED: "evict"}


@dataclass(frozen=True, slots=True)
class Batch:
    """A frozen reference batch; its version is the digest of its content."""

    version: str
    subjects: tuple[str, ...]


class ReferenceBatch:
    """The reference batch of one protocol, in one token space.

    The protocol's ``min_reference`` and ``max_reference`` bound it, in patients.
    """

    def __init__(
        self,
        database: Database,
        protocol: Protocol,
        fingerprint: str,
        redundancy: Redundancy | None = None,
    ) -> None:
        """Without `redundancy` the oldest leaves, whatever the protocol says."""
        self.database = database
        self.protocol = protocol
        self.fingerprint = fingerprint
        self._redundancy = redundancy

    def add_candidate(
        self,
        subject: str,
        uid: str,
        patient_key: str,
        at: datetime,
        scanner: str = "",
        software: str = "",
        *,
        part: str = "",
        beside: Collection[str] = (),
    ) -> None:
        """Make a tokenized subject known; it serves while the batch is founded.

        One that is known already keeps its state. Earlier revisions of its series leave, in every
        token space, unless they are pinned or the batch is frozen: an old revision is the same
        patient with fewer slices, and would hide what is unusual. Of a series of several volumes
        `part` is the key of this one, and `beside` has the subjects of all of this revision.
        """
        why, added = "tokenized, not yet scored", clock.stamp(at)
        entry = Member(
            subject, uid, patient_key, CANDIDATE, why, added, scanner, software, part=part
        )
        name = self.protocol.name
        with self.database.begin() as db:
            stale = reference_table.other_revisions(db, name, uid, {subject, *beside})
            for fingerprint, found in groupby(stale, lambda item: item[0]):
                frozen = Freezes.of(admission_table.freezes(db, name, fingerprint)).frozen
                changes = _outdated([old for _, old in found], frozen=frozen)
                if changes:
                    decision = Decision(name, fingerprint, RULE, "evict", _NEW_REVISION)
                    admission_table.record(db, decision, changes, at)
            reference_table.add(db, name, self.fingerprint, entry)

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
        if len(found) < self.protocol.min_reference and not self.frozen():
            found = self._members((ADMITTED, CANDIDATE), subject, patient_key)
        if len(found) < self.protocol.min_reference:
            raise InsufficientReference(
                f"{len(found)} of {self.protocol.min_reference} reference subjects of protocol "
                f"{self.protocol.name!r}; the study is scored by itself when there are enough"
            )
        serving = admission.most(found, self.protocol.max_reference)
        subjects = tuple(sorted(entry.subject for entry in serving))
        version = f"{self.protocol.name}-{digest(self.fingerprint, subjects)}"
        with self.database.begin() as db:
            reference_table.freeze(db, version, *self._where, subjects, at)
        return Batch(version, subjects)

    @property
    def _where(self) -> tuple[str, str]:
        return self.protocol.name, self.fingerprint

    def _members(self, states: Sequence[str], subject: str, patient_key: str) -> list[Member]:
        """Return members, oldest first, one per patient, without the subject and its patient."""
        with self.database.read() as db:
            found = reference_table.members(db, *self._where, states)
        return [
            entry
            for entry in admission.one_per_patient(found)
            if entry.patient_key != patient_key and entry.subject != subject
        ]

    def frozen(self) -> bool:
        """Return whether a person stopped the automatic changes."""
        with self.database.read() as db:
            return Freezes.of(admission_table.freezes(db, *self._where)).frozen

    def ready(self) -> bool:
        """Return whether every member could be scored now, whoever it is.

        The job that waits for the batch belongs to a member, who may not serve in its own batch:
        hence one patient more than the batch needs.
        """
        states = (ADMITTED,) if self.frozen() else (ADMITTED, CANDIDATE)
        return len(self._members(states, "", "")) > self.protocol.min_reference

    def nearest(self, subject: str) -> dict[str, float]:
        """Return how far each admitted member, and `subject`, is from the nearest other one.

        Empty where the oldest leaves, or nobody has to. It may read files: not for a transaction.
        """
        if self._redundancy is None or self.protocol.leaves != "most_redundant":
            return {}
        with self.database.read() as db:
            admitted = reference_table.members(db, *self._where, (ADMITTED,))
        names = sorted({subject, *(entry.subject for entry in admitted)})
        fits = len(names) <= self.protocol.max_reference
        if fits and admission.quota(self.protocol) is None:
            return {}
        return dict(zip(names, self._redundancy(names), strict=True))

    def decide(
        self,
        subject: str,
        percentile: float,
        quality: Sequence[str] = (),
        at: datetime | None = None,
        standing: Standing | None = None,
    ) -> str:
        """Admit a scored subject, or not, and let others leave for it; returns the reason.

        `admission.judged` and `admission.leaving` say by which rules, and what the arguments are.
        What a person decided stands, and nobody comes or leaves while the batch is frozen. The
        percentile among the batch's own scores is kept with the member; it is also what judges
        where no `standing` is given.

        Raises LookupError where `add_candidate` did not make the subject known.
        """
        nearest = self.nearest(subject)
        with self.database.begin() as db:
            entry = reference_table.get_member(db, *self._where, subject)
            if entry is None:
                raise LookupError(f"{subject} is not known to protocol {self.protocol.name!r}")
            frozen = Freezes.of(admission_table.freezes(db, *self._where)).frozen
            if stands := _stands(entry, frozen=frozen):
                return stands
            admitted = reference_table.members(db, *self._where, (ADMITTED,))
            found = standing or Standing(percentile)
            state, reason = admission.judged(self.protocol, found, quality, len(admitted))
            if frozen and state == ADMITTED:
                state, reason = CANDIDATE, f"not {reason}; the batch is frozen"
            new = replace(entry, state=state, reason=reason, percentile=percentile)
            leaves = {} if frozen else self._leaving(new, admitted, nearest)
            new = _after(entry, new, leaves)
            changes = [Change(entry, new), *_evictions(admitted, leaves, subject)]
            decision = Decision(*self._where, RULE, _VERBS[new.state], new.reason)
            admission_table.record(db, decision, changes, at or clock.now())
        return new.reason

    def _leaving(
        self, new: Member, admitted: Sequence[Member], nearest: Mapping[str, float]
    ) -> dict[str, str]:
        """Return who leaves, and why, once the row of the judged study is `new`."""
        found = [entry for entry in admitted if entry.subject != new.subject]
        found += [new] if new.state == ADMITTED else []
        found.sort(key=lambda entry: (entry.added, entry.subject))
        return admission.leaving(found, self.protocol, nearest)


def _outdated(stale: Sequence[Member], *, frozen: bool) -> list[Change]:
    """Return how old revisions of a series leave."""
    return [
        Change(entry, replace(entry, state=EVICTED, reason=_NEW_REVISION))
        for entry in stale
        if not entry.pinned and not (frozen and entry.state == ADMITTED)
    ]


def _stands(entry: Member, *, frozen: bool) -> str:
    """Return why a member's state stands, whatever its score; empty when it does not."""
    if entry.state == EVICTED:
        # while it was scored a newer revision of its series came: that one counts
        return "not admitted: it has left the batch"
    if entry.decided_by != RULE:
        return f"{entry.state}, as {entry.decided_by} decided: {entry.reason}"
    if frozen and entry.state == ADMITTED:
        return "stays admitted: the batch is frozen"
    return ""


def _after(entry: Member, new: Member, leaves: Mapping[str, str]) -> Member:
    """Return the row of the judged study, which may itself be the one that has to leave."""
    why = leaves.get(entry.subject)
    if why is None:
        return new
    state = EVICTED if entry.state == ADMITTED else EXCLUDED
    return replace(new, state=state, reason=f"kept out: {why}")


def _evictions(admitted: Sequence[Member], leaves: Mapping[str, str], but: str) -> list[Change]:
    """Return how members leave, each with its reason."""
    return [
        Change(entry, replace(entry, state=EVICTED, reason=leaves[entry.subject]))
        for entry in admitted
        if entry.subject in leaves and entry.subject != but
    ]
