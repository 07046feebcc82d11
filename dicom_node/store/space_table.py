"""Which space a protocol uses, in the ledger: since when, chosen from whom, and why.

A row is one look for a space, and what came of it. It is of a protocol and of the *settings* under
which it was learnt (:func:`dicom_node.space_rules.settings_of`): under these at most one row serves
and at most one is under way. The rows of `moved` say what became of each member while the batch is
rebuilt in a new space. This module keeps states and never judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from dicom_node import clock
from dicom_node.store.tables import moved, space

#: asked for, by a duty or a person; a worker has not looked yet
WANTED = "wanted"
#: chosen; the members are encoded anew in it
BUILDING = "building"
#: new studies are made and scored in it
SERVING = "serving"
#: served, until another took its place
LEFT = "left"
#: looked: the one that serves stays
KEPT = "kept"
#: was building, and cannot serve
ABANDONED = "abandoned"
_UNDER_WAY = (WANTED, BUILDING)

#: what became of a member: not yet known, encoded in the new space, or left behind
TRYING, THERE, BEHIND = "trying", "there", "left behind"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a look for a space found."""

    #: of the file; `dicom_node.space.Space.name`
    digest: str
    #: the token fingerprint in it, with the encoder of that time
    fingerprint: str
    #: whose volume is the template; empty: none, or a file that the protocol names
    template: str
    #: of whom it was chosen and learnt
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SpaceRow:
    """One look for a space; what is not known yet is empty."""

    id: int
    protocol: str
    settings: str
    state: str
    #: `reference_table.RULE`, or a person's name
    actor: str
    reason: str
    #: patients that were admitted at the look
    n_members: int
    asked: str
    #: since when it serves, or when it ended otherwise
    since: str
    chosen: Chosen | None


def found(
    db: Connection, protocol: str, settings: str, chosen: Chosen, reason: str, at: datetime
) -> SpaceRow:
    """Let a space serve where none does; returns the one that serves, which may be another."""
    there = serving(db, protocol, settings)
    if there is not None:
        return there
    values = {"actor": "rule", "reason": reason, "n_members": 1, "since": clock.stamp(at)}
    number = _add(db, protocol, settings, SERVING, at, **values, **_columns(chosen))
    return get(db, number)


def want(
    db: Connection,
    protocol: str,
    settings: str,
    n_members: int,
    actor: str,
    reason: str,
    at: datetime,
) -> SpaceRow | None:
    """Ask for a look; returns its row, None where one is under way already."""
    if under_way(db, protocol, settings) is not None:
        return None
    values = {"actor": actor, "reason": reason, "n_members": n_members}
    return get(db, _add(db, protocol, settings, WANTED, at, **values))


def build(db: Connection, number: int, chosen: Chosen, reason: str) -> bool:
    """Begin to build what a look has chosen; returns whether it was still wanted."""
    return _move(db, number, (WANTED,), BUILDING, reason=reason, **_columns(chosen))


def end(db: Connection, number: int, state: str, reason: str, at: datetime) -> bool:
    """End what is under way as `KEPT` or `ABANDONED`; returns whether it was under way."""
    return _move(db, number, _UNDER_WAY, state, reason=reason, since=clock.stamp(at))


def serve(db: Connection, number: int, reason: str, at: datetime) -> bool:
    """Let what was built serve in the place of the one before; returns whether it was building."""
    row, moment = get(db, number), clock.stamp(at)
    before = serving(db, row.protocol, row.settings)
    if row.state != BUILDING:
        return False
    if before is not None:
        _move(db, before.id, (SERVING,), LEFT)
    return _move(db, number, (BUILDING,), SERVING, reason=reason, since=moment)


def _add(
    db: Connection,
    protocol: str,
    settings: str,
    state: str,
    at: datetime,
    **values: Any,  # noqa: ANN401 - column values of several types
) -> int:
    values |= {"protocol": protocol, "settings": settings, "state": state}
    row = insert(space).values(asked=clock.stamp(at), **values).returning(space.c.id)
    return int(db.execute(row).scalar_one())


def _move(
    db: Connection,
    number: int,
    before: Sequence[str],
    state: str,
    **values: Any,  # noqa: ANN401 - column values of several types
) -> bool:
    """Change a row's state in one statement that names the old ones."""
    where = (space.c.id == number) & space.c.state.in_(before)
    return bool(db.execute(update(space).where(where).values(state=state, **values)).rowcount)


# --- to read ------------------------------------------------------------------------------------


def get(db: Connection, number: int) -> SpaceRow:
    """Return the row of this number, which exists."""
    return _row(db.execute(select(space).where(space.c.id == number)).one())


def serving(db: Connection, protocol: str, settings: str) -> SpaceRow | None:
    """Return the space that serves; None: it is yet to be founded."""
    return _one(db, protocol, settings, (SERVING,))


def under_way(db: Connection, protocol: str, settings: str) -> SpaceRow | None:
    """Return the look that is wanted, or the space that is being built."""
    return _one(db, protocol, settings, _UNDER_WAY)


def history(db: Connection, protocol: str) -> list[SpaceRow]:
    """Return all looks for a space of a protocol, whatever the settings, the newest first."""
    rows = select(space).where(space.c.protocol == protocol).order_by(space.c.id.desc())
    return [_row(row) for row in db.execute(rows)]


def of_fingerprint(db: Connection, protocol: str, fingerprint: str) -> SpaceRow | None:
    """Return the last space that served with these tokens; None: they are in no space of a batch's.

    After a change of the encoder that is not known until the next space.
    """
    rows = db.execute(
        select(space)
        .where(space.c.protocol == protocol, space.c.fingerprint == fingerprint)
        .where(space.c.state.in_([SERVING, LEFT]))
        .order_by(space.c.id.desc())
        .limit(1)
    )
    return next((_row(row) for row in rows), None)


def _one(db: Connection, protocol: str, settings: str, states: Sequence[str]) -> SpaceRow | None:
    rows = db.execute(
        select(space).where(
            space.c.protocol == protocol,
            space.c.settings == settings,
            space.c.state.in_(states),
        )
    )
    return next((_row(row) for row in rows), None)


def _columns(chosen: Chosen) -> dict[str, Any]:
    return asdict(chosen) | {"subjects": list(chosen.subjects)}


def _row(row: Row[Any]) -> SpaceRow:
    chosen = None
    if row.digest:
        chosen = Chosen(row.digest, row.fingerprint, row.template, tuple(row.subjects))
    names = [name for name in SpaceRow.__slots__ if name != "chosen"]
    return SpaceRow(**{name: getattr(row, name) for name in names}, chosen=chosen)


# --- members on their way -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a member in a new space."""

    subject: str
    state: str
    reason: str
    attempts: int


def attempt(db: Connection, number: int, subject: str) -> int:
    """Count an attempt to encode a member, before it is made; returns which one it is.

    An attempt that kills its process leaves no later moment to count it.
    """
    first = {"space_id": number, "subject": subject, "state": TRYING, "reason": "", "attempts": 1}
    statement = upsert(moved).values(first)
    again = statement.on_conflict_do_update(
        index_elements=moved.primary_key.columns, set_={"attempts": moved.c.attempts + 1}
    )
    return int(db.execute(again.returning(moved.c.attempts)).scalar_one())


def settle(db: Connection, number: int, subject: str, state: str, reason: str) -> None:
    """Record what became of a member: `THERE`, or `BEHIND` with why."""
    where = (moved.c.space_id == number) & (moved.c.subject == subject)
    db.execute(update(moved).where(where).values(state=state, reason=reason))


def moves(db: Connection, number: int) -> dict[str, Moved]:
    """Return what became of each member that was tried, by its name."""
    rows = db.execute(select(moved).where(moved.c.space_id == number).order_by(moved.c.subject))
    return {r.subject: Moved(r.subject, r.state, r.reason, r.attempts) for r in rows}
