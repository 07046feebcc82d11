"""The ledger as `dicom-node verify` reads it: rows of one moment, and what SQLite says of itself.

It reads and never judges; :mod:`dicom_node.invariants` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table, func, select

from dicom_node.store.tables import (
    admission,
    batch,
    commitment,
    delivery,
    instance,
    job,
    member,
    part,
    result,
    score,
    series,
)

#: a row, its columns as attributes
Entry = Row[Any]
_Rows = tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows of the tables that must agree with each other and with the disk, at one moment."""

    series: _Rows
    #: of series that hold several volumes, per revision
    parts: _Rows
    instances: _Rows
    jobs: _Rows
    scores: _Rows
    results: _Rows
    deliveries: _Rows
    members: _Rows
    batches: _Rows
    #: texts of all decisions, for a member that was undone is known by them alone
    decisions: tuple[str, ...]
    #: per destination: when it was first asked to commit
    first_asked: dict[str, str]


def snapshot(db: Connection) -> Snapshot:
    """Return what the caller's transaction sees."""
    asked = select(commitment.c.destination, func.min(commitment.c.asked)).group_by(
        commitment.c.destination
    )
    return Snapshot(
        series=_rows(db, series),
        parts=_rows(db, part),
        instances=_rows(db, instance),
        jobs=_rows(db, job),
        scores=_rows(db, score),
        results=_rows(db, result),
        deliveries=_rows(db, delivery),
        members=_rows(db, member),
        batches=_rows(db, batch),
        decisions=tuple(json.dumps(row.changes) for row in _rows(db, admission)),
        first_asked={row[0]: row[1] for row in db.execute(asked)},
    )


def known_instances(db: Connection) -> set[str]:
    """Return the file names of all instances, relative to the inbox."""
    return set(db.execute(select(instance.c.file_name)).scalars())


def damage(db: Connection) -> list[str]:
    """Return what SQLite finds wrong with the file and with the references between tables."""
    found = [str(text) for (text,) in db.exec_driver_sql("PRAGMA integrity_check") if text != "ok"]
    for row in db.exec_driver_sql("PRAGMA foreign_key_check"):
        found.append(f"row {row[1]} of {row[0]} names a row of {row[2]} that is not there")
    return found


def _rows(db: Connection, table: Table) -> _Rows:
    return tuple(db.execute(select(table).order_by(*table.primary_key.columns)).all())
