"""What the drift watch says, in the ledger: one open row of a kind, closed when it is so no longer.

A look hands over everything that is so now. What was open already is seen again, what is new opens
a row, and what is not said any more is closed: a fault that comes back opens a row of its own, so
that the table is also the history. :mod:`dicom_node.drift` judges; this module only keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, insert, select, update

from dicom_node import clock
from dicom_node.store.tables import warning


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What a warning is of: no two open ones have one key."""

    protocol: str
    kind: str
    #: as `dicom_node.scanner` names it; empty: of all scanners
    scanner: str = ""
    #: Software Versions as sent
    software: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning as it reads now; the text says what was found and what to do."""

    key: Key
    text: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What one look changed."""

    opened: tuple[Notice, ...]
    closed: tuple[Key, ...]


def settle(db: Connection, notices: Sequence[Notice], at: datetime) -> Settled:
    """Make the open warnings those of `notices`, of which no two have one key.

    Parameters
    ----------
    db
        A write transaction: its lock keeps two looks from opening one warning twice.
    """
    now, moment = {notice.key: notice for notice in notices}, clock.stamp(at)
    rows = {_key(row): row for row in _open_rows(db)}
    for key, row in rows.items():
        found = now.get(key)
        changed = (
            {"closed": moment}
            if found is None
            else {"text": found.text, "last_seen": moment, "n_looks": row.n_looks + 1}
        )
        db.execute(update(warning).where(warning.c.id == row.id).values(**changed))
    opened = tuple(notice for key, notice in now.items() if key not in rows)
    for notice in opened:
        _open(db, notice, moment)
    return Settled(opened, tuple(key for key in rows if key not in now))


def _open(db: Connection, notice: Notice, moment: str) -> None:
    key = notice.key
    db.execute(
        insert(warning).values(
            protocol=key.protocol,
            kind=key.kind,
            scanner=key.scanner,
            software=key.software,
            text=notice.text,
            first_seen=moment,
            last_seen=moment,
            n_looks=1,
        )
    )


def open_keys(db: Connection) -> frozenset[Key]:
    """Return what is warned of now."""
    return frozenset(_key(row) for row in _open_rows(db))


def open_warnings(db: Connection) -> list[Row]:  # type: ignore[type-arg]
    """Return the open warnings, the newest first, with all columns."""
    return sorted(_open_rows(db), key=lambda row: (row.first_seen, row.id), reverse=True)


def _open_rows(db: Connection) -> Sequence[Row]:  # type: ignore[type-arg]
    return db.execute(
        select(warning).where(warning.c.closed.is_(None)).order_by(warning.c.id)
    ).all()


def _key(row: Row) -> Key:  # type: ignore[type-arg]
    return Key(row.protocol, row.kind, row.scanner, row.software)
