"""Reference members and frozen batches in the ledger.

A member is one subject in one token space (protocol and token fingerprint); its tokens lie on disk
under the same names. This module keeps states and never judges:
:class:`dicom_node.reference.ReferenceBatch` decides who is admitted and who serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.sqlite import insert

from dicom_node import clock
from dicom_node.store.tables import batch, member

#: tokenized, not yet judged; serves only while the batch is being founded
CANDIDATE = "candidate"
ADMITTED = "admitted"
#: kept out, with the reason
EXCLUDED = "excluded"
#: was admitted; left when the batch was full or a newer revision came
EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class Member:
    """One subject known to a protocol's reference."""

    #: digest of the series' UID and content: another revision is another subject
    subject: str
    series_instance_uid: str
    #: digest of the patient's identity, so that one patient counts once
    patient_key: str
    state: str
    reason: str


def add_candidate(
    db: Connection, protocol: str, fingerprint: str, entry: Member, at: datetime
) -> None:
    """Add a tokenized subject; other revisions of its series leave, in every token space.

    A subject that is known keeps its state and its place: a stage that runs again must not make a
    judged one a candidate. `at` is its age: the oldest leave first.
    """
    # the old revision is the same patient with fewer slices: kept, it would hide what is unusual
    db.execute(
        update(member)
        .where(
            member.c.protocol == protocol,
            member.c.series_instance_uid == entry.series_instance_uid,
            member.c.subject != entry.subject,
            member.c.state.in_([CANDIDATE, ADMITTED]),
        )
        .values(state=EVICTED, reason="late instances made a new revision of the series")
    )
    db.execute(
        insert(member)
        .values(
            protocol=protocol,
            fingerprint=fingerprint,
            subject=entry.subject,
            series_instance_uid=entry.series_instance_uid,
            patient_key=entry.patient_key,
            state=entry.state,
            reason=entry.reason,
            added=clock.stamp(at),
        )
        .on_conflict_do_nothing()
    )


def members(db: Connection, protocol: str, fingerprint: str, states: Sequence[str]) -> list[Member]:
    """Return the members in these states, oldest first; those of one moment by name."""
    rows = db.execute(
        select(member)
        .where(
            member.c.protocol == protocol,
            member.c.fingerprint == fingerprint,
            member.c.state.in_(states),
        )
        .order_by(member.c.added, member.c.subject)
    )
    return [
        Member(row.subject, row.series_instance_uid, row.patient_key, row.state, row.reason)
        for row in rows
    ]


def set_state(
    db: Connection, protocol: str, fingerprint: str, subject: str, state: str, reason: str
) -> None:
    """Record a decision on one subject, with its reason for a person."""
    db.execute(
        update(member)
        .where(
            member.c.protocol == protocol,
            member.c.fingerprint == fingerprint,
            member.c.subject == subject,
        )
        .values(state=state, reason=reason)
    )


def freeze(
    db: Connection,
    version: str,
    protocol: str,
    fingerprint: str,
    subjects: Sequence[str],
    at: datetime,
) -> None:
    """Keep the batch under its name; the name is its content, so a second call changes nothing."""
    db.execute(
        insert(batch)
        .values(
            version=version,
            protocol=protocol,
            fingerprint=fingerprint,
            subjects=list(subjects),
            frozen=clock.stamp(at),
        )
        .on_conflict_do_nothing()
    )


def counts(db: Connection) -> dict[tuple[str, str], int]:
    """Return the number of members per (protocol, state), over all token spaces."""
    rows = db.execute(
        select(member.c.protocol, member.c.state, func.count()).group_by(
            member.c.protocol, member.c.state
        )
    )
    return {(protocol, state): int(number) for protocol, state, number in rows}
