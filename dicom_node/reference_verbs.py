"""What people decide about a reference batch: each verb is one decision with its author and reason.

Each takes the batch and returns what it found, or the :class:`Event` that it recorded. Reasons are
kept and shown as they are written: they must name no patient. What was decided, by rule or by a
person, `undo` takes back.

DecisionRefused says what stands against a decision and what to do; nothing has then changed. All
may raise DatabaseUnavailable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dicom_node import admission, clock
from dicom_node.admission import Freezes
from dicom_node.errors import DecisionRefused, NoMatchingProtocol
from dicom_node.grouping import Protocols
from dicom_node.protocol_config import Protocol
from dicom_node.reference import ReferenceBatch
from dicom_node.space_rules import settings_of
from dicom_node.store import (
    admission_table,
    discovered_table,
    job_table,
    reference_table,
    series_table,
    space_table,
)
from dicom_node.store.admission_table import (
    FREEZE,
    REBUILD,
    UNFREEZE,
    Change,
    Decision,
    Event,
)
from dicom_node.store.database import Database
from dicom_node.store.reference_table import (
    ADMITTED,
    CANDIDATE,
    EVICTED,
    EXCLUDED,
    RULE,
    STATES,
    Member,
)
from dicom_node.store.space_table import Moved, SpaceRow

_LONGEST_NAME = 64
_FORGET = "forget"

#: the member and the admitted ones, oldest first -> what is to change
Plan = Callable[[Member, Sequence[Member]], Sequence[Change]]


@dataclass(frozen=True, slots=True)
class Shown:
    """A member and what was decided of it, newest first."""

    member: Member
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went with a discovered protocol."""

    #: candidates and admitted ones that have left its batch
    n_members: int
    #: studies that waited for it
    n_waiting: int


# --- to look at ---------------------------------------------------------------------------------


def current_batch(database: Database, protocol: Protocol) -> ReferenceBatch:
    """Return the batch that the newest study of a protocol came into, without loading an encoder.

    After a change of the encoder that is the old one until a study came. The oldest leaves it where
    a person lets somebody in, whatever the protocol says: redundancy is known to the worker alone.
    Raises DecisionRefused where no study has come yet.
    """
    with database.read() as db:
        found = reference_table.fingerprints(db, protocol.name)
    _refuse(not found, f"no study of protocol {protocol.name!r} has come yet")
    return ReferenceBatch(database, protocol, found[0])


def list_members(batch: ReferenceBatch, states: Sequence[str] = STATES) -> list[Member]:
    """Return the members in these states, oldest first."""
    with batch.database.read() as db:
        return reference_table.members(db, batch.protocol.name, batch.fingerprint, states)


def show(batch: ReferenceBatch, subject: str) -> Shown:
    """Return a member with its history; raises DecisionRefused where it is not known."""
    where = (batch.protocol.name, batch.fingerprint)
    with batch.database.read() as db:
        found = _known(batch, reference_table.get_member(db, *where, subject), subject)
        return Shown(found, tuple(admission_table.history(db, *where, subject=subject)))


def history(batch: ReferenceBatch, limit: int = 100) -> list[Event]:
    """Return the newest decisions about the batch, newest first."""
    with batch.database.read() as db:
        return admission_table.history(db, batch.protocol.name, batch.fingerprint, limit=limit)


def _known(batch: ReferenceBatch, found: Member | None, subject: str) -> Member:
    if found is None:
        raise DecisionRefused(
            f"no subject {subject!r} is known to the reference of protocol "
            f"{batch.protocol.name!r}; `reference list` names those that are"
        )
    return found


def space_of(batch: ReferenceBatch) -> SpaceRow | None:
    """Return the space in which the batch's subjects are made; None: it has none of its own."""
    with batch.database.read() as db:
        return space_table.of_fingerprint(db, batch.protocol.name, batch.fingerprint)


def spaces(database: Database, protocol: Protocol) -> list[tuple[SpaceRow, list[Moved]]]:
    """Return all looks for a space of a protocol's batch, newest first, and who moved in each."""
    with database.read() as db:
        rows = space_table.history(db, protocol.name)
        return [(row, list(space_table.moves(db, row.id).values())) for row in rows]


# --- members ------------------------------------------------------------------------------------


def include(
    batch: ReferenceBatch, subject: str, by: str, reason: str, at: datetime | None = None
) -> Event:
    """Admit a member whatever its score, its quality and its scanner's quota.

    The patient's other study gives way, and where the batch is full one leaves, as by rule. Raises
    DecisionRefused: it is admitted, or pinned members hold its patient's place or all places.
    """
    nearest = batch.nearest(subject)

    def plan(entry: Member, admitted: Sequence[Member]) -> list[Change]:
        _refuse(entry.state == ADMITTED, f"{subject} is admitted already")
        new = replace(entry, state=ADMITTED, reason=reason)
        return [Change(entry, new), *_gives_way(batch.protocol, new, admitted, nearest)]

    return _decide(batch, subject, Decision(*_where(batch), by, "include", reason), plan, at)


def exclude(
    batch: ReferenceBatch, subject: str, by: str, reason: str, at: datetime | None = None
) -> Event:
    """Keep a member out, whatever its score; its pin goes with it.

    Scores that were made with it stay as they are. Where fewer than ``min_reference`` are left,
    candidates serve again, or studies wait. Raises DecisionRefused: it is excluded by a person
    already.
    """

    def plan(entry: Member, _admitted: Sequence[Member]) -> list[Change]:
        done = entry.state == EXCLUDED and entry.decided_by != RULE
        _refuse(done, f"{subject} is excluded already, by {entry.decided_by}")
        new = replace(entry, state=EXCLUDED, reason=reason, pinned=False)
        return [Change(entry, new)]

    return _decide(batch, subject, Decision(*_where(batch), by, "exclude", reason), plan, at)


def pin(
    batch: ReferenceBatch, subject: str, by: str, reason: str, at: datetime | None = None
) -> Event:
    """Let an admitted member never leave by rule; it counts against ``max_reference``.

    Raises DecisionRefused: it is not admitted, or pinned already.
    """

    def plan(entry: Member, _admitted: Sequence[Member]) -> list[Change]:
        _refuse(entry.state != ADMITTED, f"{subject} is {entry.state}: include it first")
        _refuse(entry.pinned, f"{subject} is pinned already")
        return [Change(entry, replace(entry, pinned=True, reason=reason))]

    return _decide(batch, subject, Decision(*_where(batch), by, "pin", reason), plan, at)


def unpin(
    batch: ReferenceBatch, subject: str, by: str, reason: str, at: datetime | None = None
) -> Event:
    """Let a pinned member leave by rule again; raises DecisionRefused where it is not pinned."""

    def plan(entry: Member, _admitted: Sequence[Member]) -> list[Change]:
        _refuse(not entry.pinned, f"{subject} is not pinned")
        return [Change(entry, replace(entry, pinned=False, reason=reason))]

    return _decide(batch, subject, Decision(*_where(batch), by, "unpin", reason), plan, at)


def _gives_way(
    protocol: Protocol, new: Member, admitted: Sequence[Member], nearest: dict[str, float]
) -> list[Change]:
    """Return how others leave for a member that a person admits, and that must not leave itself."""
    held = [m for m in admitted if m.pinned and m.patient_key == new.patient_key]
    _refuse(bool(held), "a pinned study of the patient is in the batch: unpin or exclude it first")
    pool = sorted([*admitted, replace(new, pinned=True)], key=lambda m: (m.added, m.subject))
    without_quota = protocol.model_copy(update={"max_per_scanner": None})
    leaves = admission.leaving(pool, without_quota, nearest)
    full = len(pool) - len(leaves) > protocol.max_reference
    _refuse(full, f"all {protocol.max_reference} places are pinned: unpin or exclude one first")
    return [
        Change(entry, replace(entry, state=EVICTED, reason=leaves[entry.subject]))
        for entry in admitted
        if entry.subject in leaves
    ]


# --- the batch ----------------------------------------------------------------------------------


def freeze(batch: ReferenceBatch, by: str, reason: str, at: datetime | None = None) -> Event:
    """Stop the automatic changes: nobody is admitted or leaves but by a person.

    Studies are scored and judged as before, and usual ones wait as candidates, which a frozen batch
    never counts on. Raises DecisionRefused: it is frozen, or still being founded.
    """
    return _set_frozen(batch, Decision(*_where(batch), by, FREEZE, reason), at)


def unfreeze(batch: ReferenceBatch, by: str, reason: str, at: datetime | None = None) -> Event:
    """Let the batch roll again, with the next study; raises DecisionRefused: it is not frozen."""
    return _set_frozen(batch, Decision(*_where(batch), by, UNFREEZE, reason), at)


def _set_frozen(batch: ReferenceBatch, decision: Decision, at: datetime | None) -> Event:
    check_author(decision)
    wanted, name = decision.verb == FREEZE, batch.protocol.name
    with batch.database.begin() as db:
        frozen = Freezes.of(admission_table.freezes(db, *_where(batch))).frozen
        _refuse(frozen == wanted, f"the batch of {name!r} is {'' if frozen else 'not '}frozen")
        n, least = (
            len(reference_table.members(db, *_where(batch), (ADMITTED,))),
            batch.protocol.min_reference,
        )
        founding = f"the batch of {name!r} is being founded: {n} of {least} are admitted"
        _refuse(wanted and n < least, founding)
        event = admission_table.record(db, decision, [], at or clock.now())
    release_waiting(batch, at)
    return event


def rebuild(batch: ReferenceBatch, by: str, reason: str, at: datetime | None = None) -> SpaceRow:
    """Ask for a better template and histogram of the batch's own, and for the batch in them.

    Workers look when they have no job, and rebuild the batch only if they find better ones; the old
    batch serves meanwhile. Returns the row in which it can be followed.

    Raises
    ------
    DecisionRefused
        The protocol takes nothing from its batch, a look is under way already, the batch is frozen,
        or fewer than ``min_reference`` patients are admitted.
    """
    protocol, settings = batch.protocol, settings_of(batch.protocol)
    text = f'protocol {protocol.name!r} has neither template = "medoid" nor harmonise = true'
    _refuse(not protocol.own, text)
    check_author(Decision(*_where(batch), by, REBUILD, reason))
    with batch.database.begin() as db:
        frozen = Freezes.of(admission_table.freezes(db, *_where(batch))).frozen
        _refuse(frozen, f"the batch of {protocol.name!r} is frozen: unfreeze it first")
        admitted = reference_table.members(db, *_where(batch), (ADMITTED,))
        n, least = len(admission.one_per_patient(admitted)), protocol.min_reference
        founding = f"the batch of {protocol.name!r} is being founded: {n} of {least} are admitted"
        _refuse(n < least, founding)
        at = at or clock.now()
        row = space_table.want(db, protocol.name, settings, n, by, reason, at)
    if row is None:
        raise DecisionRefused(f"a better space of {protocol.name!r} is sought or built already")
    return row


# --- back ---------------------------------------------------------------------------------------


def undo(
    batch: ReferenceBatch, number: int, by: str, reason: str, at: datetime | None = None
) -> Event:
    """Put back every row as it was before a decision, to the bit, as a decision of its own.

    An undo can be undone like any other. Scores made meanwhile stay, with their batches.

    Raises
    ------
    DecisionRefused
        There is no such decision about this batch; it is undone already; a later one, which is
        still in force, changed the same members; or what comes back has no room any more.
    """
    with batch.database.begin() as db:
        try:
            event = admission_table.get_event(db, number)
        except LookupError as error:
            raise DecisionRefused(f"{error}; `reference history` lists them") from error
        done = event.decision
        text = f"decision {number} brought the batch into another space: rebuild it once more"
        _refuse(done.verb == REBUILD, text)
        other = (done.protocol, done.fingerprint) != _where(batch)
        _refuse(other, f"decision {number} is about another batch, of {done.protocol!r}")
        gone = "a forgotten protocol does not come back: its series found another, or are claimed"
        _refuse(done.verb == _FORGET, gone)
        for change in event.changes:
            now = reference_table.get_member(db, *_where(batch), change.subject)
            if now != change.new:
                later = admission_table.history(db, *_where(batch), subject=change.subject)[0]
                raise DecisionRefused(_superseded(event, later, change.subject))
        freezes = admission_table.freezes(db, *_where(batch))
        verb = "undo" if event.changes else _undone_freeze(event, freezes)
        before = reference_table.members(db, *_where(batch), (ADMITTED,))
        text = f"undoes {done.verb} ({done.reason}): {reason}"
        decision = Decision(*_where(batch), by, verb, text, number)
        check_author(decision)
        back = [Change(change.new, change.old) for change in event.changes]
        undone = admission_table.record(db, decision, back, at or clock.now())
        after = reference_table.members(db, *_where(batch), (ADMITTED,))
        _check_room(batch.protocol, before, after)
    release_waiting(batch, at)
    return undone


def _superseded(event: Event, later: Event, subject: str) -> str:
    """Return why a decision is not the last one of a subject any more."""
    what = f"{later.decision.verb} by {later.decision.actor}"
    if later.decision.undoes == event.id:
        return f"decision {event.id} is undone already, by decision {later.id} ({what})"
    return (
        f"decision {later.id} ({what}) came after decision {event.id} and changed {subject} too: "
        f"undo that one first"
    )


def _undone_freeze(event: Event, events: Sequence[Event]) -> str:
    """Return the verb of what takes back a freeze or an unfreeze."""
    known = Freezes.of(events)
    late = known.in_force != known.after[event.id]
    _refuse(late, f"decision {event.id} is undone already, or a later one froze or unfroze")
    return UNFREEZE if known.frozen else FREEZE


def _check_room(protocol: Protocol, before: Sequence[Member], after: Sequence[Member]) -> None:
    """Refuse what would fill the batch beyond its bounds."""
    most = protocol.max_reference
    full = len(after) > max(most, len(before))
    _refuse(full, f"the batch would hold {len(after)} of {most} subjects: exclude another first")
    studies = Counter(entry.patient_key for entry in after)
    twice = studies - Counter(entry.patient_key for entry in before)
    doubled = [m.subject for m in after if twice[m.patient_key] and studies[m.patient_key] > 1]
    text = f"{' and '.join(doubled)} are studies of one patient: exclude one of them first"
    _refuse(bool(doubled), text)


# --- a protocol that the node discovered ---------------------------------------------------------


def forget(
    protocols: Protocols, name: str, by: str, reason: str, at: datetime | None = None
) -> Forgotten:
    """Let a discovered protocol claim nothing any more, for good.

    Its members are excluded, in every token space; studies that wait for its batch are rejected,
    and `retry` handles them as unclaimed. Scores that it has made stay as they are, under its name,
    which no other protocol is given. Raises DecisionRefused: no discovered protocol is called so,
    or studies of it are under way.
    """
    moment = at or clock.now()
    database, known = protocols.database, {e.protocol.name for e in protocols.discovered()}
    if database is None or name not in known:
        others = ", ".join(sorted(known)) or "none"
        raise DecisionRefused(f"no discovered protocol is named {name!r}; there are: {others}")
    with database.begin() as db:
        busy = series_table.n_under_way(db, name)
        _refuse(bool(busy), f"{busy} studies of {name!r} are under way: wait until they are done")
        n_members = 0
        for space in reference_table.fingerprints(db, name) or [""]:
            decision = Decision(name, space, by, _FORGET, reason)
            check_author(decision)
            serving = reference_table.members(db, name, space, (ADMITTED, CANDIDATE))
            changes = [
                Change(m, replace(m, state=EXCLUDED, reason=reason, pinned=False)) for m in serving
            ]
            admission_table.record(db, decision, changes, moment)
            n_members += len(changes)
        _refuse(not discovered_table.forget(db, name, moment), f"{name!r} is forgotten already")
        why = f"the discovered protocol {name!r} was forgotten by {by}; write a [[protocol]] that "
        why += "claims the series, or let it found another, then `dicom-node retry`"
        fault = NoMatchingProtocol.__name__
        waiting = job_table.reject_waiting(db, name, why, fault, moment)
        series_table.clear_protocol(db, waiting)
    return Forgotten(n_members, len(waiting))


# --- what all share -----------------------------------------------------------------------------


def _where(batch: ReferenceBatch) -> tuple[str, str]:
    return batch.protocol.name, batch.fingerprint


def _decide(
    batch: ReferenceBatch, subject: str, decision: Decision, plan: Plan, at: datetime | None
) -> Event:
    """Carry out a plan for a member as one decision, then queue what waited for the batch."""
    check_author(decision)
    with batch.database.begin() as db:
        found = reference_table.get_member(db, *_where(batch), subject)
        admitted = reference_table.members(db, *_where(batch), (ADMITTED,))
        changes = plan(_known(batch, found, subject), admitted)
        event = admission_table.record(db, decision, changes, at or clock.now())
    release_waiting(batch, at)
    return event


def release_waiting(batch: ReferenceBatch, at: datetime | None) -> None:
    """Queue the studies that wait for the batch, if it is large enough now."""
    if batch.ready():
        with batch.database.begin() as db:
            job_table.release_waiting(db, batch.protocol.name, at or clock.now())


def check_author(decision: Decision) -> None:
    """Refuse a decision without a person's name or a reason: it could not be answered for."""
    name = decision.actor
    usable = name == name.strip() and name.isprintable() and 0 < len(name) <= _LONGEST_NAME
    _refuse(
        not usable or name.lower() == RULE,
        f"{name!r} is no name of a person (1 to {_LONGEST_NAME} printable characters, not 'rule')",
    )
    _refuse(not decision.reason.strip(), f"a reason is needed to {decision.verb}")


def _refuse(condition: bool, text: str) -> None:  # noqa: FBT001 - reads as "refuse if"
    if condition:
        raise DecisionRefused(text)
