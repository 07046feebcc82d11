"""Decisions about a reference batch in the ledger: who decided what, why, and how it was before.

The table is append-only. A decision and the rows of the members that it changed are written in one
transaction, and each row names the decision that left it as it is: a decision is in force as long
as all its rows still say so, and can then be undone by putting back the rows of before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select

from dicom_node import clock
from dicom_node.store import reference_table
from dicom_node.store.reference_table import Member
from dicom_node.store.tables import admission

#: the automatic changes of a batch stop, and go on; decisions without a change of a member
FREEZE, UNFREEZE = "freeze", "unfreeze"
#: the batch comes into another space, each member as it was decided of before
REBUILD = "rebuild"


@dataclass(frozen=True, slots=True)
class Change:
    """One member's row before and after; None where there was none, or is none any more."""

    old: Member | None
    new: Member | None

    @property
    def subject(self) -> str:
        """The member's name."""
        return (self.old or self.new).subject  # type: ignore[union-attr]  # one of them is there


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, before it has a number."""

    protocol: str
    fingerprint: str
    #: `reference_table.RULE`, or a person's name
    actor: str
    verb: str
    reason: str
    #: number of the decision whose rows it puts back
    undoes: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A decision as it was recorded."""

    id: int
    at: datetime
    decision: Decision
    changes: tuple[Change, ...]


def record(db: Connection, decision: Decision, changes: Sequence[Change], at: datetime) -> Event:
    """Write a decision and the rows of its members, in the caller's write transaction.

    Parameters
    ----------
    changes
        Each ``old`` is the row as it is now. The new rows get the number and the actor of the
        decision, but for one that undoes another: its rows come back to the bit; and one that
        rebuilds the batch, which leaves each member to whom decided of it.
    """
    # the write lock is held (`Database.begin`): nobody takes this number meanwhile
    number = int(db.execute(select(func.coalesce(func.max(admission.c.id), 0))).scalar_one()) + 1
    if decision.undoes is None:
        changes = [Change(c.old, c.new and _decided(c.new, decision, number)) for c in changes]
    rows = [
        {"subject": c.subject, "old": c.old and asdict(c.old), "new": c.new and asdict(c.new)}
        for c in changes
    ]
    values = {"id": number, "at": clock.stamp(at), "changes": rows, **asdict(decision)}
    db.execute(insert(admission).values(values))
    for change in changes:
        reference_table.replace_row(
            db, decision.protocol, decision.fingerprint, change.subject, change.new
        )
    return Event(number, clock.parse(clock.stamp(at)), decision, tuple(changes))


def _decided(new: Member, decision: Decision, number: int) -> Member:
    """Return a member's new row with the decision that made it."""
    author = new.decided_by if decision.verb == REBUILD else decision.actor
    return replace(new, decided_by=author, decided_in=number)


def get_event(db: Connection, number: int) -> Event:
    """Return a decision; raises LookupError where none has that number."""
    row = db.execute(select(admission).where(admission.c.id == number)).one_or_none()
    if row is None:
        raise LookupError(f"there is no decision {number} about a reference batch")
    return _event(row)


def history(
    db: Connection,
    protocol: str,
    fingerprint: str,
    *,
    subject: str | None = None,
    limit: int = 100,
) -> list[Event]:
    """Return the newest decisions about a batch, newest first; of one subject where it is given."""
    found = select(admission).where(
        admission.c.protocol == protocol, admission.c.fingerprint == fingerprint
    )
    if subject is not None:
        change = func.json_each(admission.c.changes).table_valued("value")
        named = func.json_extract(change.c.value, "$.subject") == subject
        found = found.where(exists(select(1).select_from(change).where(named)))
    return [_event(row) for row in db.execute(found.order_by(admission.c.id.desc()).limit(limit))]


def freezes(db: Connection, protocol: str, fingerprint: str) -> list[Event]:
    """Return the decisions that froze the batch or let it roll again, oldest first."""
    rows = db.execute(
        select(admission)
        .where(
            admission.c.protocol == protocol,
            admission.c.fingerprint == fingerprint,
            admission.c.verb.in_([FREEZE, UNFREEZE]),
        )
        .order_by(admission.c.id)
    )
    return [_event(row) for row in rows]


def _event(row: Row[Any]) -> Event:
    decision = Decision(**{name: getattr(row, name) for name in Decision.__slots__})
    changes = tuple(
        Change(old and Member(**old), new and Member(**new))
        for old, new in ((change["old"], change["new"]) for change in row.changes)
    )
    return Event(row.id, clock.parse(row.at), decision, changes)
