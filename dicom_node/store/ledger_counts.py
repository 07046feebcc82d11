"""Totals of a ledger that grows for years, without reading all of it again at every question.

What is open (queued, running, waiting, failed, dead) is little and is counted by an index. What has
ended never changes again, so it is counted once: :class:`Ended` remembers up to which row it has
counted, and which of the rows before were still open then. The first count reads the whole table.

References
----------
https://www.sqlite.org/rowidtable.html (the number of a row in a table without one of its own)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Table,
    and_,
    case,
    func,
    literal_column,
    select,
)

from dicom_node.jobs import DeliveryState, JobState
from dicom_node.store.tables import association, delivery, instance, job, refusal, series

#: upper edges of the durations, seconds; the last bucket of a histogram has none
EDGES_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
#: the rest of the states ends a row
OPEN_JOBS = tuple(s.value for s in JobState if s not in {JobState.DONE, JobState.SUPERSEDED})
OPEN_DELIVERIES = tuple(
    s.value for s in DeliveryState if s not in {DeliveryState.DELIVERED, DeliveryState.SUPERSEDED}
)
#: SQLite takes so many values in one statement, and more
_AT_ONCE = 500


def open_jobs(db: Connection) -> Counter[tuple[str, str]]:
    """Return the number of jobs that have not ended, per (stage, state)."""
    keys = (job.c.stage, job.c.state)
    return _counted(db, job.c.state.in_(OPEN_JOBS), keys)


def open_deliveries(db: Connection) -> Counter[tuple[str, str]]:
    """Return the number of objects on their way, per (destination, state)."""
    keys = (delivery.c.destination, delivery.c.state)
    return _counted(db, _open_deliveries(db), keys)


def _open_deliveries(db: Connection) -> ColumnElement[bool]:
    """Name the destinations too: by both columns the index finds the few that are open."""
    return and_(
        delivery.c.destination.in_(_destinations(db)), delivery.c.state.in_(OPEN_DELIVERIES)
    )


def _destinations(db: Connection) -> list[str]:
    """Return every destination that there were deliveries for, each by one step in the index."""
    found: list[str] = []
    while True:
        after = select(func.min(delivery.c.destination))
        if found:
            after = after.where(delivery.c.destination > found[-1])
        name = db.execute(after).scalar_one()
        if name is None:
            return found
        found.append(str(name))


def _counted(
    db: Connection, where: ColumnElement[bool], keys: Sequence[Column[str]]
) -> Counter[tuple[str, str]]:
    rows = db.execute(select(*keys, func.count()).where(where).group_by(*keys))
    return Counter({(row[0], row[1]): int(row[2]) for row in rows})


def oldest_queued(db: Connection) -> dict[str, str]:
    """Return, per stage with queued jobs, since when (ISO 8601) the oldest of them is due."""
    rows = db.execute(
        select(job.c.stage, func.min(job.c.not_before))
        .where(job.c.state == JobState.QUEUED.value)
        .group_by(job.c.stage)
    )
    return {row[0]: row[1] for row in rows.all()}


def n_instances(db: Connection) -> int:
    """Return how many instances were received: the number of the last row, none is ever deleted."""
    return _last(db, instance, _row_number(instance))


def n_associations(db: Connection) -> tuple[int, int]:
    """Return how many associations were accepted, and how many of them are open."""
    still = select(func.count()).select_from(association).where(association.c.closed.is_(None))
    return _last(db, association, association.c.id), int(db.execute(still).scalar_one())


def n_series(db: Connection) -> dict[str, int]:
    """Return the number of series per state, by its index."""
    rows = db.execute(select(series.c.state, func.count()).group_by(series.c.state))
    return {state: int(number) for state, number in rows}


def refusals_after(db: Connection, number: int) -> list[tuple[int, str]]:
    """Return number and reason of every refusal after that one, in order."""
    rows = db.execute(
        select(refusal.c.id, refusal.c.reason).where(refusal.c.id > number).order_by(refusal.c.id)
    )
    return [(row.id, row.reason) for row in rows]


@dataclass(frozen=True, slots=True)
class Totals:
    """What can be counted by an index, or by the tables' own numbers."""

    n_instances: int
    n_associations: int
    n_open_associations: int
    #: per state
    n_series: dict[str, int]
    #: per (stage, state) and (destination, state)
    open_jobs: Counter[tuple[str, str]]
    open_deliveries: Counter[tuple[str, str]]
    #: per stage with queued jobs, since when (ISO 8601) the oldest is due
    oldest_queued: dict[str, str]


def totals(db: Connection) -> Totals:
    """Count all of that, in the caller's transaction."""
    return Totals(
        n_instances(db),
        *n_associations(db),
        n_series(db),
        open_jobs(db),
        open_deliveries(db),
        oldest_queued(db),
    )


@dataclass(slots=True)
class Durations:
    """A histogram of seconds; what it counts grows and never shrinks."""

    #: per bucket of `EDGES_S` and one more, not cumulated
    buckets: list[int] = field(default_factory=lambda: [0] * (len(EDGES_S) + 1))
    total_s: float = 0.0

    @property
    def n(self) -> int:
        """How many there were."""
        return sum(self.buckets)


@dataclass(slots=True)
class Ended:
    """How many rows of a queue have ended, and how long each took from ``created`` on.

    One per process and queue, asked by one thread at a time.
    """

    table: Table
    #: jobs by their stage, deliveries by their destination
    label: Column[str]
    open_states: tuple[str, ...]
    #: per (label, state)
    durations: dict[tuple[str, str], Durations] = field(default_factory=dict)
    _seen: int = 0
    _open: frozenset[int] = frozenset()

    def update(self, db: Connection) -> None:
        """Count what has ended since the last call, in a read transaction of the caller."""
        number = _row_number(self.table)
        last = _last(db, self.table, number)
        open_now = self._open_now(db, number)
        ended = sorted(self._open - open_now)
        parts = [ended[start : start + _AT_ONCE] for start in range(0, len(ended), _AT_ONCE)]
        new = (number > self._seen) & (number <= last)
        wheres: list[ColumnElement[bool]] = [number.in_(part) for part in parts]
        wheres.append(new & self.table.c.state.not_in(self.open_states))
        # all is read before anything is counted: a ledger that stops answering costs no count
        for rows in [self._summed(db, where) for where in wheres]:
            self._add(rows)
        self._seen, self._open = last, open_now

    def _open_now(self, db: Connection, number: ColumnElement[int]) -> frozenset[int]:
        of_jobs = job.c.state.in_(OPEN_JOBS)
        where = of_jobs if self.table is job else _open_deliveries(db)
        return frozenset(db.execute(select(number).where(where)).scalars())

    def _summed(self, db: Connection, where: ColumnElement[bool]) -> Sequence[Row[Any]]:
        """Return the rows that `where` names, summed up per label, state and bucket."""
        seconds = _seconds(self.table)
        bucket = case(
            *((seconds <= edge, place) for place, edge in enumerate(EDGES_S)), else_=len(EDGES_S)
        )
        keys = (self.label, self.table.c.state, bucket)
        found = select(*keys, func.count(), func.sum(seconds)).where(where).group_by(*keys)
        return db.execute(found).all()

    def _add(self, rows: Sequence[Row[Any]]) -> None:
        for row in rows:
            label, state, place, n, total_s = tuple(row)
            found = self.durations.setdefault((label, state), Durations())
            found.buckets[place] += int(n)
            found.total_s += float(total_s)


def ended_jobs() -> Ended:
    """Return a count of jobs per stage; from queued to ended, all waits included."""
    return Ended(job, job.c.stage, OPEN_JOBS)


def ended_deliveries() -> Ended:
    """Return a count of deliveries per destination; from queued to ended, all waits included."""
    return Ended(delivery, delivery.c.destination, OPEN_DELIVERIES)


def _seconds(table: Table) -> ColumnElement[float]:
    """Return the seconds from ``created`` to ``updated``; a clock that went back makes none."""
    days = func.julianday(table.c.updated) - func.julianday(table.c.created)
    return func.max(0.0, days * 86400.0)


def _row_number(table: Table) -> ColumnElement[int]:
    return literal_column(f"{table.name}.rowid", Integer)


def _last(db: Connection, table: Table, number: ColumnElement[int]) -> int:
    """Return the highest number of a row, 0 of an empty table: one step in the table's tree."""
    return int(db.execute(select(func.max(number)).select_from(table)).scalar_one() or 0)
