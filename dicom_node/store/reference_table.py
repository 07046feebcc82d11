"""Reference members and frozen batches in the ledger.

A member is one subject in one token space (protocol and token fingerprint); its tokens lie on disk
under the same names. This module keeps states and never judges: :mod:`dicom_node.reference` decides
who is admitted and who serves. A member's row changes by a decision alone
(:mod:`dicom_node.store.admission_table`), which keeps how it was before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, outerjoin, select
from sqlalchemy.dialects.sqlite import insert

from dicom_node import clock
from dicom_node.store.tables import batch, member, space

#: tokenized, not yet judged; serves only while the batch is being founded
CANDIDATE = "candidate"
ADMITTED = "admitted"
#: kept out, with the reason
EXCLUDED = "excluded"
#: was admitted; left when the batch was full or a newer revision came
EVICTED = "evicted"
STATES = (CANDIDATE, ADMITTED, EXCLUDED, EVICTED)

#: who decides where no person does
RULE = "rule"


@dataclass(frozen=True, slots=True)
class Member:
    """One subject known to a protocol's reference: its row but for protocol and fingerprint."""

    #: digest of the series' UID and content: another revision is another subject
    subject: str
    #: empty of a subject that came from another node
    series_instance_uid: str
    #: digest of the patient's identity, so that one patient counts once
    patient_key: str
    state: str
    reason: str
    #: moment (ISO 8601); its age: the oldest leave first
    added: str
    #: make, model and digest of the serial number; empty where the series did not say
    scanner: str = ""
    #: Software Versions as sent; empty where the series did not say
    software: str = ""
    #: never leaves by rule
    pinned: bool = False
    #: 0..100, of its score when the rule judged it
    percentile: float | None = None
    #: `RULE`, or a person's name
    decided_by: str = RULE
    #: number of the decision that left the row as it is; None before the first
    decided_in: int | None = None
    #: key of the volume of its series; empty: the only one
    part: str = ""


def add(db: Connection, protocol: str, fingerprint: str, entry: Member) -> None:
    """Add a subject; one that is known keeps its state and its place.

    A stage that runs again must not make a judged one a candidate.
    """
    values = {"protocol": protocol, "fingerprint": fingerprint, **asdict(entry)}
    db.execute(insert(member).values(values).on_conflict_do_nothing())


def replace_row(
    db: Connection, protocol: str, fingerprint: str, subject: str, entry: Member | None
) -> None:
    """Put `entry` in the place of the subject's row, or take the row away where it is None."""
    if entry is None:
        db.execute(delete(member).where(_is(protocol, fingerprint, subject)))
        return
    values = {"protocol": protocol, "fingerprint": fingerprint, **asdict(entry)}
    statement = insert(member).values(values)
    db.execute(
        statement.on_conflict_do_update(index_elements=member.primary_key.columns, set_=values)
    )


def get_member(db: Connection, protocol: str, fingerprint: str, subject: str) -> Member | None:
    """Return the subject's row, None where there is none."""
    row = db.execute(select(member).where(_is(protocol, fingerprint, subject))).one_or_none()
    return None if row is None else _member(row._asdict())


def members(
    db: Connection, protocol: str, fingerprint: str, states: Sequence[str] = STATES
) -> list[Member]:
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
    return [_member(row._asdict()) for row in rows]


def other_revisions(
    db: Connection, protocol: str, uid: str, present: Collection[str]
) -> list[tuple[str, Member]]:
    """Return what other revisions of a series serve the protocol, with their fingerprints.

    `present` has the names of its present revision's subjects.
    """
    rows = db.execute(
        select(member)
        .where(
            member.c.protocol == protocol,
            member.c.series_instance_uid == uid,
            member.c.subject.not_in(present),
            member.c.state.in_([CANDIDATE, ADMITTED]),
        )
        .order_by(member.c.fingerprint, member.c.added, member.c.subject)
    )
    return [(row.fingerprint, _member(row._asdict())) for row in rows]


def fingerprints(db: Connection, protocol: str) -> list[str]:
    """Return the token spaces that the protocol has members in, the one used last first.

    That is the one into which a member came last, or whose space began to serve last: members that
    move into a new space keep their age.
    """
    began = func.max(func.coalesce(space.c.since, ""))
    serves = and_(
        space.c.protocol == member.c.protocol,
        space.c.fingerprint == member.c.fingerprint,
        space.c.state == "serving",
    )
    rows = db.execute(
        select(member.c.fingerprint)
        .select_from(outerjoin(member, space, serves))
        .where(member.c.protocol == protocol)
        .group_by(member.c.fingerprint)
        .order_by(func.max(func.max(member.c.added), began).desc(), member.c.fingerprint)
    )
    return list(rows.scalars())


def _is(protocol: str, fingerprint: str, subject: str) -> ColumnElement[bool]:
    return and_(
        member.c.protocol == protocol,
        member.c.fingerprint == fingerprint,
        member.c.subject == subject,
    )


def _member(row: dict[str, object]) -> Member:
    return Member(**{name: row[name] for name in Member.__slots__})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FrozenBatch:
    """A batch that scores were made with, or that was exported."""

    version: str
    protocol: str
    fingerprint: str
    subjects: tuple[str, ...]
    frozen: datetime


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


def get_batch(db: Connection, version: str) -> FrozenBatch:
    """Return a frozen batch; raises LookupError where none has that name."""
    row = db.execute(select(batch).where(batch.c.version == version)).one_or_none()
    if row is None:
        raise LookupError(f"no reference batch is named {version!r}")
    return FrozenBatch(
        row.version, row.protocol, row.fingerprint, tuple(row.subjects), clock.parse(row.frozen)
    )


def batches(db: Connection, protocol: str) -> list[FrozenBatch]:
    """Return the protocol's frozen batches, newest first."""
    rows = db.execute(
        select(batch)
        .where(batch.c.protocol == protocol)
        .order_by(batch.c.frozen.desc(), batch.c.version)
    )
    return [
        FrozenBatch(r.version, r.protocol, r.fingerprint, tuple(r.subjects), clock.parse(r.frozen))
        for r in rows
    ]


def counts(db: Connection) -> dict[tuple[str, str], int]:
    """Return the number of members per (protocol, state), over all token spaces."""
    rows = db.execute(
        select(member.c.protocol, member.c.state, func.count()).group_by(
            member.c.protocol, member.c.state
        )
    )
    return {(protocol, state): int(number) for protocol, state, number in rows}


def counts_in_force(db: Connection) -> dict[tuple[str, str], int]:
    """Return the number of members per (protocol, state), in the token space used last."""
    found: dict[tuple[str, str], int] = {}
    for protocol in db.execute(select(member.c.protocol).distinct()).scalars().all():
        of = fingerprints(db, protocol)[0]
        rows = db.execute(
            select(member.c.state, func.count())
            .where(member.c.protocol == protocol, member.c.fingerprint == of)
            .group_by(member.c.state)
        )
        found |= {(protocol, row[0]): int(row[1]) for row in rows}
    return found
