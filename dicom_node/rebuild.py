"""The batch of a protocol moves into a better space of its own, member by member.

A look is *wanted* (by the duty, or by a person), a worker *chooses* among members, and where what
it chose is better than what serves, each admitted member is encoded anew beside the old tokens. The
old batch serves meanwhile. When all members are there, or are left behind with a reason, the
protocol changes over in one transaction.

All of it goes in steps, done by workers that have no job. What is done stands in the ledger, a
step that runs twice does no harm, and a worker may be killed at any moment: there is no lease. Two
workers that do one step write the same files and find the same rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from dicom_node import admission, clock, volume
from dicom_node.alignment import Template
from dicom_node.anomaly.harmonisation import mean_landmarks
from dicom_node.errors import Disposition, InputError, NodeError
from dicom_node.founding import subject_of, without_padding
from dicom_node.learning import MOST, landmarks_of, most_typical, picture
from dicom_node.line import Line
from dicom_node.protocol_config import OWN_HISTOGRAM, OWN_TEMPLATE, Protocol
from dicom_node.space import Space
from dicom_node.space_rules import moved_far, settings_of
from dicom_node.store import admission_table, job_table, reference_table, space_table
from dicom_node.store.admission_table import REBUILD, Change, Decision
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, Member
from dicom_node.store.space_table import (
    ABANDONED,
    BEHIND,
    BUILDING,
    KEPT,
    THERE,
    TRYING,
    Chosen,
    Moved,
    SpaceRow,
)
from dicom_node.subject import canonical_again
from dicom_node.volume import Volume

_log = logging.getLogger(__name__)


def step(line: Line, of: Protocol) -> bool:
    """Do the next step towards a better space of a protocol; returns whether there was one.

    Nothing is done while the batch is frozen, or before it is founded. A step is the choice, the
    encoding of one member, or the change-over: seconds to a minute.

    Raises
    ------
    DatabaseUnavailable, NodeError
        The step could not be done, and may be at another time; the attempts of a member are counted
        before, so that one that kills its worker is left behind in the end.
    """
    if not of.own or (row := _under_way(line, of)) is None:
        return False
    if line.look(of) is None or line.batch(of).frozen():
        return False
    if row.chosen is None:
        _choose(line, of, row)
        return True
    setting = line.setting(of, line.space_files.load(row.chosen.digest))
    if line.token_digest(setting.method, setting.placing) != row.chosen.fingerprint:
        _end(line, row, ABANDONED, "encoder or tokens changed while it was built")
        return True
    left = _still_to_move(line, of, row)
    if left:
        # several workers begin at different members
        _move(line, of, row, row.chosen, left[os.getpid() % len(left)])
    else:
        _change_over(line, of, row, row.chosen)
    return True


def _under_way(line: Line, of: Protocol) -> SpaceRow | None:
    with line.database.read() as db:
        return space_table.under_way(db, of.name, settings_of(of))


def _end(line: Line, row: SpaceRow, state: str, reason: str) -> None:
    """Record that the present space stays, and why."""
    with line.database.begin() as db:
        space_table.end(db, row.id, state, reason, clock.now())
    _log.info("protocol %s stays in its space: %s", row.protocol, reason)


def _admitted(line: Line, of: Protocol) -> list[Member]:
    """Return the members of the batch that serves, oldest first."""
    with line.database.read() as db:
        where = of.name, line.token_fingerprint(of)
        return reference_table.members(db, *where, (ADMITTED,))


# --- to choose ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """What is learnt of the members that were looked at."""

    members: tuple[Member, ...]
    #: index of the most typical one
    typical: int
    #: mean of theirs; empty where the protocol does not harmonise
    landmarks: tuple[float, ...]


def _choose(line: Line, of: Protocol, row: SpaceRow) -> None:
    """Look at members, and begin to build the space that they make if it is a better one."""
    look = _looked_at(line, of)
    if look is None:
        text = f"fewer than {of.min_reference} of the members' series are still kept"
        _end(line, row, KEPT, text)
        return
    subjects = tuple(member.subject for member in look.members)
    before, space = _serving(line, of), Space(None, look.landmarks)
    name, reasons = before.template, []
    if OWN_TEMPLATE in of.own:
        name = subjects[look.typical]
        space = replace(space, template=_template(line, of, look.members[look.typical]))
        if name != before.template:
            reasons.append(f"{name} is more typical than {before.template} as the template")
    present = line.space(of)
    if present and moved_far(present.landmarks, space.landmarks):
        reasons.append("the histogram has moved")
    if not reasons or (present and present.name == space.name):
        _end(line, row, KEPT, f"of {len(subjects)} members none makes a better one")
        return
    line.space_files.save(space)
    setting = line.setting(of, space)
    fingerprint = line.token_digest(setting.method, setting.placing)
    reason = f"of {len(subjects)} members: {'; '.join(reasons)}"
    with line.database.begin() as db:
        space_table.build(db, row.id, Chosen(space.name, fingerprint, name, subjects), reason)
    _log.info("protocol %s: space %s is built, %s", of.name, space.name, reason)


def _serving(line: Line, of: Protocol) -> Chosen:
    with line.database.read() as db:
        row = space_table.serving(db, of.name, settings_of(of))
    assert row is not None  # noqa: S101 - `step` has looked
    assert row.chosen is not None  # noqa: S101 - what serves was chosen
    return row.chosen


def _looked_at(line: Line, of: Protocol) -> _Look | None:
    """Look at `learning.MOST` members at most; None where too few could be moved.

    By the order of their names, which are digests: a sample that no age or scanner favours. The
    subject whose volume is the template now is among them, if it is a member. They are placed as
    they were, without registration; and the histogram is learnt where they lie now, for it does not
    change with the pose.
    """
    kept = [member for member in _admitted(line, of) if not _gone(line, member)]
    if len(admission.one_per_patient(kept)) < of.min_reference:
        return None
    template = _serving(line, of).template
    kept.sort(key=lambda member: (member.subject != template, member.subject))
    placed = list(islice(_placed(line, of, kept), MOST))
    if not placed:
        return None
    mean = mean_landmarks([one.landmarks for one in placed]) if OWN_HISTOGRAM in of.own else ()
    typical = most_typical([one.picture for one in placed])
    return _Look(tuple(one.member for one in placed), typical, mean)


@dataclass(frozen=True, slots=True)
class _Placed:
    """What a look keeps of one member."""

    member: Member
    picture: Tensor
    landmarks: tuple[float, ...]


def _placed(line: Line, of: Protocol, members: Sequence[Member]) -> Iterator[_Placed]:
    """Yield what is seen of each member; those that cannot be read are passed over."""
    method = line.method(of)
    plain = replace(method, intensity=replace(method.intensity, landmarks=()))
    for member in members:
        try:
            source = _volume(line, member)
            subject = line.files(of).load_subject(member.subject)
        except (InputError, OSError) as error:
            _log.warning("subject %s is not looked at: %s", member.subject, error)
            continue
        affine = torch.from_numpy(source.affine)
        one = canonical_again(subject, without_padding(source), affine, plain)
        yield _Placed(member, picture(one, of.spacing_mm), landmarks_of(one))


def _template(line: Line, of: Protocol, member: Member) -> Template:
    """Make the template of a member's volume."""
    source = _volume(line, member)
    placing = line.setting(of, None).placing
    return placing.as_template(without_padding(source), torch.from_numpy(source.affine))


def _volume(line: Line, member: Member) -> Volume:
    series, _ = line.series(member.series_instance_uid, member.part)
    return volume.build_series(series)


def _gone(line: Line, member: Member) -> str:
    """Return why a member cannot be encoded anew; empty where it can."""
    if not member.series_instance_uid:
        return "it came from another node, without its series"
    changed = "late instances have changed its series since"
    try:
        series, name = line.series(member.series_instance_uid, member.part)
    except LookupError:  # no such part of it any more, or not yet again
        return changed
    if name != member.subject:
        return changed
    if not all(path.exists() for path in series.files):
        return "its series is not kept any more"
    return ""


# --- to move ------------------------------------------------------------------------------------


def _still_to_move(line: Line, of: Protocol, row: SpaceRow) -> list[Member]:
    with line.database.read() as db:
        return _unsettled(
            reference_table.members(db, of.name, line.token_fingerprint(of), (ADMITTED,)),
            space_table.moves(db, row.id),
        )


def _unsettled(members: Sequence[Member], moves: Mapping[str, Moved]) -> list[Member]:
    """Return the members of which it is not known yet what becomes of them."""
    return [m for m in members if m.subject not in moves or moves[m.subject].state == TRYING]


def _move(line: Line, of: Protocol, row: SpaceRow, chosen: Chosen, member: Member) -> None:
    """Encode a member in the new space, or leave it behind with the reason."""
    with line.database.begin() as db:
        n = space_table.attempt(db, row.id, member.subject)
    used_up = n > line.config.scoring.max_attempts
    why = "the worker ended without a word at every attempt" if used_up else _gone(line, member)
    try:
        if not why:
            _encode(line, of, chosen, member)
    except NodeError as error:
        if error.disposition is Disposition.RETRY:
            raise
        why = str(error)
    with line.database.begin() as db:
        space_table.settle(db, row.id, member.subject, BEHIND if why else THERE, why)
    _log.info("subject %s in space %s: %s", member.subject, chosen.digest, why or "encoded")


def _encode(line: Line, of: Protocol, chosen: Chosen, member: Member) -> None:
    files = line.files(of, chosen.fingerprint)
    if not files.has_subject(member.subject):
        space = line.space_files.load(chosen.digest)
        files.save_subject(member.subject, subject_of(line, of, _volume(line, member), space))


# --- to change over -----------------------------------------------------------------------------


def _change_over(line: Line, of: Protocol, row: SpaceRow, chosen: Chosen) -> None:
    """Let the new space serve, with all members that are there, in one transaction.

    Where they are too few the old one stays: a protocol must not fall back to waiting.
    """
    at = clock.now()
    with line.database.begin() as db:
        members = reference_table.members(db, of.name, line.token_fingerprint(of), (ADMITTED,))
        moves = space_table.moves(db, row.id)
        if space_table.get(db, row.id).state != BUILDING or _unsettled(members, moves):
            return  # another worker was quicker, or somebody was admitted meanwhile
        there = [member for member in members if moves[member.subject].state == THERE]
        said = f"{len(there)} of {len(members)} members could be encoded in it"
        if len(admission.one_per_patient(there)) < of.min_reference:
            reason = f"only {said}, of the {of.min_reference} that are needed ({row.reason})"
            space_table.end(db, row.id, ABANDONED, reason, at)
            _log.warning("protocol %s stays in its space: %s", of.name, reason)
            return
        reason = f"rebuilt in space {chosen.digest}, {row.reason}; {said}"
        decision = Decision(of.name, chosen.fingerprint, row.actor, REBUILD, reason)
        known = reference_table.members(db, of.name, chosen.fingerprint)
        admission_table.record(db, decision, _arrivals(there, known), at)
        space_table.serve(db, row.id, f"{row.reason}; {said}", at)
    _log.info("protocol %s: %s", of.name, reason)
    line.look(of)
    if line.batch(of).ready():
        with line.database.begin() as db:
            job_table.release_waiting(db, of.name, clock.now())


def _arrivals(there: Sequence[Member], known: Sequence[Member]) -> list[Change]:
    """Return how the rows of the new space become those of the members, as each was decided of.

    Rows are there already where the batch was in this space before.
    """
    rows = {entry.subject: entry for entry in known}
    come = [Change(rows.pop(member.subject, None), member) for member in there]
    return come + [
        Change(entry, replace(entry, state=EVICTED, reason="not in the batch that was rebuilt"))
        for entry in rows.values()
        if entry.state in (ADMITTED, CANDIDATE)
    ]
