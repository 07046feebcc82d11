"""Protocols that the node discovered by itself: what unclaimed series founded, in the ledger.

A row is the text of a ``[[protocol]]`` and the signature of the series that founded it. Neither
changes: a batch is named by them. This module keeps rows and never judges; which of them count
beside the configuration, :mod:`dicom_node.grouping` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, union, union_all, update

from dicom_node import clock
from dicom_node.store.tables import discovered, member, part, series


@dataclass(frozen=True, slots=True)
class Row:
    """One discovered protocol as it was recorded."""

    name: str
    #: a ``[[protocol]]``, as it would stand in ``config.toml``
    rule: str
    #: of the founder: values as JSON holds them
    signature: dict[str, Any]
    #: moment (ISO 8601)
    founded: str
    #: moment at which a person had it forgotten; None: it is in force
    forgotten: str | None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many series a protocol claims, and when the last instance of one came (ISO 8601)."""

    n_series: int = 0
    last_seen: str = ""


def add(db: Connection, name: str, rule: str, signature: Mapping[str, Any], at: datetime) -> None:
    """Record a new one; its name is no other's (`names_in_use`)."""
    db.execute(
        insert(discovered).values(
            name=name, rule=rule, signature=dict(signature), founded=clock.stamp(at)
        )
    )


def rows(db: Connection) -> list[Row]:
    """Return all of them, forgotten ones too, the oldest first."""
    found = db.execute(select(discovered).order_by(discovered.c.founded, discovered.c.name))
    return [
        Row(row.name, row.rule, row.signature, row.founded, row.forgotten) for row in found.all()
    ]


def forget(db: Connection, name: str, at: datetime) -> bool:
    """Let a protocol claim nothing any more; returns whether it was in force."""
    changed = db.execute(
        update(discovered)
        .where(discovered.c.name == name, discovered.c.forgotten.is_(None))
        .values(forgotten=clock.stamp(at))
    ).rowcount
    return bool(changed)


def names_in_use(db: Connection) -> set[str]:
    """Return every name that a discovered protocol has or had, or that a series or member bears.

    A new protocol of an old name would find the old one's batch, and the decisions about it.
    """
    found = db.execute(
        union(
            select(discovered.c.name),
            select(member.c.protocol),
            select(series.c.protocol).where(series.c.protocol.is_not(None)),
            select(part.c.protocol).where(part.c.protocol.is_not(None)),
        )
    )
    return set(found.scalars())


def tallies(db: Connection) -> dict[str, Tally]:
    """Return of every protocol that has claimed series how many, and when the last one came."""
    of_part = and_(
        part.c.series_instance_uid == series.c.series_instance_uid,
        part.c.revision == series.c.revision,
    )
    whole = select(series.c.protocol, series.c.last_received)
    parts = select(part.c.protocol, series.c.last_received).join(series, of_part)
    all_of = union_all(whole, parts).subquery()
    found = db.execute(
        select(all_of.c.protocol, func.count(), func.max(all_of.c.last_received))
        .where(all_of.c.protocol.is_not(None))
        .group_by(all_of.c.protocol)
    )
    return {name: Tally(int(n), last) for name, n, last in found}
