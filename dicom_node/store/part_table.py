"""The volumes of a series that holds several, in the ledger: its parts, per revision.

A part is found when the series is tokenized, and stands from then on: later stages, and whoever
asks, take it from here. A series that is one volume has no row.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Row, delete, insert, select, update

from dicom_node.series import Part
from dicom_node.store.tables import part, series


def record(db: Connection, uid: str, revision: int, parts: Sequence[Part]) -> None:
    """Keep the parts of a revision in the place of what was kept of it before; none: one volume."""
    of_revision = (part.c.series_instance_uid == uid) & (part.c.revision == revision)
    db.execute(delete(part).where(of_revision))
    rows = [
        {
            "series_instance_uid": uid,
            "revision": revision,
            "key": one.key,
            "number": one.number,
            "name": one.name,
            "instances": list(one.instances),
            "frames": list(one.frames),
        }
        for one in parts
    ]
    if rows:
        db.execute(insert(part), rows)


def parts(db: Connection, uid: str, revision: int) -> list[Part]:
    """Return the parts of a revision in order; none where the series is one volume."""
    rows = db.execute(
        select(part)
        .where(part.c.series_instance_uid == uid, part.c.revision == revision)
        .order_by(part.c.number)
    )
    return [_part(row) for row in rows]


def keys(db: Connection, uid: str, revision: int) -> list[str]:
    """Return the keys of the parts of a revision in order."""
    return [one.key for one in parts(db, uid, revision)]


def names(db: Connection, uids: Sequence[str]) -> dict[tuple[str, int, str], str]:
    """Return the names of all parts of some series by (series, revision, key)."""
    rows = db.execute(select(part).where(part.c.series_instance_uid.in_(uids)))
    return {(row.series_instance_uid, row.revision, row.key): row.name for row in rows}


def get(db: Connection, uid: str, revision: int, key: str) -> tuple[Part, str | None]:
    """Return a part and the protocol that claims it; raises LookupError where there is none."""
    row = db.execute(
        select(part).where(
            part.c.series_instance_uid == uid, part.c.revision == revision, part.c.key == key
        )
    ).one_or_none()
    if row is None:
        raise LookupError(f"series {uid} revision {revision} has no part {key}")
    return _part(row), row.protocol


def set_protocol(db: Connection, uid: str, key: str, protocol: str | None) -> None:
    """Record which protocol claims a part of the series' current revision; None: none any more."""
    current = select(series.c.revision).where(series.c.series_instance_uid == uid)
    db.execute(
        update(part)
        .where(
            part.c.series_instance_uid == uid,
            part.c.key == key,
            part.c.revision == current.scalar_subquery(),
        )
        .values(protocol=protocol)
    )


def claimed(db: Connection, protocol: str) -> list[tuple[str, str]]:
    """Return (series, part) of what a protocol claims of the series' current revisions."""
    rows = db.execute(
        select(part.c.series_instance_uid, part.c.key)
        .join(series, series.c.series_instance_uid == part.c.series_instance_uid)
        .where(part.c.protocol == protocol, part.c.revision == series.c.revision)
        .order_by(part.c.series_instance_uid, part.c.number)
    )
    return [(row.series_instance_uid, row.key) for row in rows]


def _part(row: Row) -> Part:  # type: ignore[type-arg]
    return Part(row.key, row.number, row.name, tuple(row.instances), tuple(row.frames))
