"""Reports that are owed to senders which asked whether this node is responsible for instances.

Recorded before the sender's request is answered: whatever is killed, the report is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects.sqlite import insert

from dicom_node import clock
from dicom_node.store.series_table import RECEIVING
from dicom_node.store.tables import instance, owed, series

#: states of a report: to be sent; taken by the sender; nobody takes it
OWED, SENT, DEAD = "owed", "sent", "dead"
#: of SQLite's limit on values in one statement
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Owed:
    """One report that is owed."""

    id: int
    calling_ae_title: str
    peer_host: str
    transaction_uid: str
    #: (SOP Class UID, SOP Instance UID), as asked
    instances: tuple[tuple[str, str], ...]
    attempts: int
    asked: datetime


def record(
    db: Connection,
    calling_ae_title: str,
    peer_host: str,
    transaction_uid: str,
    instances: Sequence[tuple[str, str]],
    at: datetime,
    not_before: datetime,
) -> int:
    """Record that a report is owed; returns its number. Asked again, it is owed again."""
    again = {
        "peer_host": peer_host,
        "instances": [list(pair) for pair in instances],
        "state": OWED,
        "attempts": 0,
        "reason": None,
        "asked": clock.stamp(at),
        "not_before": clock.stamp(not_before),
        "updated": clock.stamp(at),
    }
    number = db.execute(
        insert(owed)
        .values(calling_ae_title=calling_ae_title, transaction_uid=transaction_uid, **again)
        .on_conflict_do_update(index_elements=["calling_ae_title", "transaction_uid"], set_=again)
        .returning(owed.c.id)
    ).scalar_one()
    _note_asked(db, [uid for _, uid in instances], at)
    return int(number)


def _note_asked(db: Connection, uids: Sequence[str], at: datetime) -> None:
    """Mark each open series of which every instance that came was asked for at once.

    Not one of a single instance: a sender may ask after each.
    """
    asked: dict[str, int] = {}
    for chunk in _chunks(sorted(set(uids))):
        rows = db.execute(
            select(instance.c.series_instance_uid, func.count())
            .where(instance.c.sop_instance_uid.in_(chunk))
            .group_by(instance.c.series_instance_uid)
        )
        for uid, number in rows:
            asked[uid] = asked.get(uid, 0) + int(number)
    for uid, number in asked.items():
        if number > 1:
            db.execute(
                update(series)
                .where(
                    series.c.series_instance_uid == uid,
                    series.c.state == RECEIVING,
                    series.c.n_instances == number,
                )
                .values(asked=clock.stamp(at))
            )


def get(db: Connection, number: int) -> Owed | None:
    """Return a report that is still owed; None once it is sent or given up."""
    row = db.execute(select(owed).where(owed.c.id == number, owed.c.state == OWED)).one_or_none()
    return None if row is None else _from_row(row)


def due(db: Connection, at: datetime, limit: int) -> list[Owed]:
    """Return at most `limit` reports that are to be sent now, the oldest first."""
    rows = db.execute(
        select(owed)
        .where(owed.c.state == OWED, owed.c.not_before <= clock.stamp(at))
        .order_by(owed.c.id)
        .limit(limit)
    )
    return [_from_row(row) for row in rows]


def settle(
    db: Connection,
    number: int,
    state: str,
    at: datetime,
    *,
    reason: str | None = None,
    not_before: datetime | None = None,
) -> None:
    """Record the outcome of one attempt on a report that is still owed."""
    values: dict[str, object] = {"state": state, "reason": reason, "updated": clock.stamp(at)}
    values["attempts"] = owed.c.attempts + 1
    if not_before is not None:
        values["not_before"] = clock.stamp(not_before)
    db.execute(update(owed).where(owed.c.id == number, owed.c.state == OWED).values(**values))


def hasten(db: Connection, number: int, at: datetime) -> None:
    """Let a report be due at `at`."""
    db.execute(
        update(owed)
        .where(owed.c.id == number, owed.c.state == OWED)
        .values(not_before=clock.stamp(at))
    )


def received(db: Connection, uids: Iterable[str]) -> dict[str, tuple[str, str, int]]:
    """Return, of those instances that are recorded, SOP Class UID, file name and size in bytes."""
    found: dict[str, tuple[str, str, int]] = {}
    for chunk in _chunks(sorted(set(uids))):
        rows = db.execute(select(instance).where(instance.c.sop_instance_uid.in_(chunk)))
        for row in rows:
            found[row.sop_instance_uid] = (row.sop_class_uid, row.file_name, row.size_bytes)
    return found


def _chunks(uids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (uids[start : start + _CHUNK] for start in range(0, len(uids), _CHUNK))


def _from_row(row: Row) -> Owed:  # type: ignore[type-arg]
    return Owed(
        row.id,
        row.calling_ae_title,
        row.peer_host,
        row.transaction_uid,
        tuple((str(sop_class), str(uid)) for sop_class, uid in row.instances),
        row.attempts,
        clock.parse(row.asked),
    )
