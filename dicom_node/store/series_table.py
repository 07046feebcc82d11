"""Associations, instances and series in the ledger; when a series is complete.

DICOM has no message that says "that was the whole series": C-STORE knows instances alone (PS3.4
Annex B). Completeness is therefore a rule over time and associations, and it may be wrong: a late
instance reopens the series under its next revision, and everything after is done anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Column, ColumnElement, Connection, Row, func, select, update
from sqlalchemy.dialects.sqlite import insert

from dicom_node import clock
from dicom_node.arrival import Slice, has_gap
from dicom_node.jobs import URGENT, JobState
from dicom_node.series import FiledInstance, Series
from dicom_node.store import job_table, part_table
from dicom_node.store.tables import association, carried, instance, job, refusal, series

#: states of a series
RECEIVING, COMPLETE = "receiving", "complete"
#: a count of fewer is of one acquisition among several: a localizer, an image of its own
_LEAST_TOLD = 8


def open_association(db: Connection, calling_ae_title: str, peer_host: str, at: datetime) -> int:
    """Record an accepted association; returns its number, which its instances name."""
    number = db.execute(
        association.insert()
        .values(calling_ae_title=calling_ae_title, peer_host=peer_host, opened=clock.stamp(at))
        .returning(association.c.id)
    ).scalar_one()
    return int(number)


def close_association(db: Connection, number: int, at: datetime) -> None:
    """Record its end, however it came; a second call changes nothing."""
    db.execute(
        update(association)
        .where(association.c.id == number, association.c.closed.is_(None))
        .values(closed=clock.stamp(at))
    )


def close_all_associations(db: Connection, at: datetime) -> None:
    """End the associations of a killed predecessor: a receiver that starts has none open.

    Without it the series that they carried would wait for the cap.
    """
    db.execute(
        update(association).where(association.c.closed.is_(None)).values(closed=clock.stamp(at))
    )


def record_refusal(
    db: Connection, calling_ae_title: str, peer_host: str, reason: str, at: datetime
) -> None:
    """Record what was refused on the wire and why, in a sentence for ``status`` and the page."""
    db.execute(
        refusal.insert().values(
            calling_ae_title=calling_ae_title,
            peer_host=peer_host,
            reason=reason,
            happened=clock.stamp(at),
        )
    )


def record_instance(db: Connection, filed: FiledInstance, at: datetime) -> bool:
    """Record one filed instance, whose file is durable; returns whether it is new.

    A re-send of a known SOP Instance UID changes nothing, whatever its content: a SOP Instance UID
    names one instance for good (PS3.5 section 9), so the first one is kept. A new instance of a
    complete series reopens it under the next revision and supersedes its unfinished jobs. Only a
    new instance prolongs the series' quiet time.
    """
    moment = clock.stamp(at)
    _touch_series(db, filed, moment)
    new = db.execute(
        insert(instance)
        .values(
            sop_instance_uid=filed.sop_instance_uid,
            series_instance_uid=filed.series_instance_uid,
            sop_class_uid=filed.sop_class_uid,
            transfer_syntax_uid=filed.transfer_syntax_uid,
            file_name=filed.file_name,
            size_bytes=filed.size_bytes,
            sha256=filed.sha256,
            calling_ae_title=filed.calling_ae_title,
            received=moment,
            along_mm=filed.slice.along_mm if filed.slice else None,
            plane=filed.slice.plane if filed.slice else None,
            n_expected=filed.n_expected,
        )
        .on_conflict_do_nothing()
    ).rowcount
    if new:
        _count_instance(db, filed.series_instance_uid, moment)
    return bool(new)


def _touch_series(db: Connection, filed: FiledInstance, moment: str) -> None:
    """Make the series known, and that this association carries it: a re-send may bring more."""
    db.execute(
        insert(series)
        .values(
            series_instance_uid=filed.series_instance_uid,
            study_instance_uid=filed.study_instance_uid,
            modality=filed.modality,
            revision=1,
            state=RECEIVING,
            n_instances=0,
            first_received=moment,
            last_received=moment,
        )
        .on_conflict_do_nothing()
    )
    db.execute(
        insert(carried)
        .values(association_id=filed.association_id, series_instance_uid=filed.series_instance_uid)
        .on_conflict_do_nothing()
    )


def _count_instance(db: Connection, uid: str, moment: str) -> None:
    """Count a new instance; a complete series is reopened.

    The cap runs from ``first_received``, which therefore starts anew with each revision.
    """
    reopened = db.execute(
        update(series)
        .where(series.c.series_instance_uid == uid, series.c.state == COMPLETE)
        .values(state=RECEIVING, revision=series.c.revision + 1, first_received=moment)
    ).rowcount
    if reopened:
        job_table.supersede(db, uid, clock.parse(moment))
    db.execute(
        update(series)
        .where(series.c.series_instance_uid == uid)
        .values(n_instances=series.c.n_instances + 1, last_received=moment, asked=None)
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """When a series is complete; seconds."""

    #: nothing came for this long, and no association that carried it is open
    quiet_s: float
    #: so long after its first instance whatever else
    cap_s: float
    #: the quiet time of a series in which slices are missing between others
    gap_quiet_s: float = 0.0
    #: calling AE titles whose series go first
    urgent_senders: frozenset[str] = frozenset()


def complete_due(db: Connection, rule: Rule, at: datetime) -> list[str]:
    """Close every series that is complete at `at` and queue its first job; returns their UIDs.

    Complete is: quiet for `quiet_s`, no association that carried it open and no slice missing
    between others; or as many as its sender says there are; or `cap_s` after its first instance,
    whatever else. The association is the better sign, the quiet time bridges senders that open one
    per instance, and the cap answers those that never close theirs. A sender that asked for storage
    commitment of every instance has sent them all: no quiet time is needed.
    """
    still_open = (
        select(carried.c.association_id)
        .join(association, association.c.id == carried.c.association_id)
        .where(
            carried.c.series_instance_uid == series.c.series_instance_uid,
            association.c.closed.is_(None),
        )
        .exists()
    )
    quiet = _before(series.c.last_received, rule.quiet_s, at) & ~still_open
    capped = _before(series.c.first_received, rule.cap_s, at)
    asked = series.c.asked.is_not(None) & ~still_open
    long_quiet = _before(series.c.last_received, rule.gap_quiet_s, at)
    receiving = db.execute(
        select(
            *(series.c.series_instance_uid, series.c.revision, series.c.n_instances),
            quiet.label("quiet"),
            (capped | asked | (quiet & long_quiet)).label("over"),
        )
        .where(series.c.state == RECEIVING, series.c.n_instances > 0)
        .order_by(series.c.first_received)
    ).all()
    due = [row for row in receiving if row.over or _is_whole(db, row)]
    for row in due:
        db.execute(
            update(series)
            .where(series.c.series_instance_uid == row.series_instance_uid)
            .values(state=COMPLETE)
        )
        urgent = _sent_by(db, row.series_instance_uid, rule.urgent_senders)
        priority = URGENT if urgent else 0
        job_table.enqueue_first(db, row.series_instance_uid, row.revision, at, priority)
    return [row.series_instance_uid for row in due]


def _sent_by(db: Connection, uid: str, senders: frozenset[str]) -> bool:
    """Return whether one of these senders sent an instance of the series."""
    of_series = (
        select(association.c.id)
        .join(carried, carried.c.association_id == association.c.id)
        .where(carried.c.series_instance_uid == uid, association.c.calling_ae_title.in_(senders))
    )
    return bool(senders) and db.execute(of_series.limit(1)).first() is not None


def _before(moment: Column[str], seconds: float, at: datetime) -> ColumnElement[bool]:
    """Tell that a moment is so long ago."""
    return moment <= clock.stamp(at - timedelta(seconds=seconds))


def _is_whole(db: Connection, row: Row) -> bool:  # type: ignore[type-arg]
    """Return whether a series that is quiet, or has as many as its sender says, has no gap."""
    of_series = instance.c.series_instance_uid == row.series_instance_uid
    if not row.quiet:
        if row.n_instances < _LEAST_TOLD:
            return False
        told = instance.c.n_expected
        asked = select(func.min(told), func.max(told), func.count(told)).where(of_series)
        if {*db.execute(asked).one()} != {row.n_instances}:
            return False
    known = slices(db, row.series_instance_uid)
    return not has_gap([one for one in known if one is not None])


def set_protocol(db: Connection, uid: str, protocol: str | None, part: str = "") -> None:
    """Record which protocol claims a series, or a part of it; a later match takes its place."""
    if part:
        part_table.set_protocol(db, uid, part, protocol)
        return
    db.execute(update(series).where(series.c.series_instance_uid == uid).values(protocol=protocol))


def clear_protocol(db: Connection, of: Sequence[tuple[str, str]]) -> None:
    """Record that no protocol claims these (series, part) any more, until a stage matches them."""
    for uid, part in of:
        set_protocol(db, uid, None, part)


def claimed(db: Connection, protocol: str) -> list[tuple[str, str]]:
    """Return the (series, part) that a protocol claims, whole series first, each by their UIDs."""
    found = select(series.c.series_instance_uid).where(series.c.protocol == protocol)
    whole = db.execute(found.order_by(series.c.series_instance_uid)).scalars()
    return [*((uid, "") for uid in whole), *part_table.claimed(db, protocol)]


def n_under_way(db: Connection, protocol: str) -> int:
    """Return how many series, or parts of some, of a protocol have a job that is queued or runs."""
    busy = (JobState.QUEUED.value, JobState.RUNNING.value)
    found = select(job.c.series_instance_uid, job.c.part).where(job.c.state.in_(busy)).distinct()
    under_way = {(row.series_instance_uid, row.part) for row in db.execute(found)}
    return len(under_way.intersection(claimed(db, protocol)))


def load(db: Connection, uid: str, inbox: Path, part: str = "") -> Series:
    """Return one series, or a part of it, with the paths of its instances.

    The files lie below `inbox`, in the order of their SOP Instance UIDs: that is no order in space.
    Raises LookupError when the series is unknown, or its present revision has no such part.
    """
    row = db.execute(select(series).where(series.c.series_instance_uid == uid)).one_or_none()
    if row is None:
        raise LookupError(f"series {uid} is not in the ledger")
    found = db.execute(
        select(instance.c.sop_instance_uid, instance.c.file_name)
        .where(instance.c.series_instance_uid == uid)
        .order_by(instance.c.sop_instance_uid)
    ).all()
    whole = _from_row(row, tuple(inbox / one.file_name for one in found))
    if not part:
        return whole
    chosen, protocol = part_table.get(db, uid, row.revision, part)
    own = set(chosen.instances)
    files = tuple(inbox / one.file_name for one in found if one.sop_instance_uid in own)
    return replace(whole, protocol=protocol, files=files, part=chosen)


def slices(db: Connection, uid: str) -> list[Slice | None]:
    """Return where each instance of a series lies, None of those that do not say."""
    rows = db.execute(
        select(instance.c.along_mm, instance.c.plane).where(instance.c.series_instance_uid == uid)
    )
    return [None if row.plane is None else Slice(row.along_mm, row.plane) for row in rows]


def _from_row(row: Row, files: tuple[Path, ...]) -> Series:  # type: ignore[type-arg]
    return Series(
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        modality=row.modality,
        revision=row.revision,
        state=row.state,
        protocol=row.protocol,
        n_instances=row.n_instances,
        first_received=clock.parse(row.first_received),
        last_received=clock.parse(row.last_received),
        files=files,
    )


def instances_digest_source(db: Connection, uid: str) -> list[tuple[str, str]]:
    """Return (SOP Instance UID, SHA-256 of the data set), sorted: what the series' content is.

    Its digest names everything that is made of the series: the same instances give the same name,
    in whatever order and however often they came.
    """
    rows = db.execute(
        select(instance.c.sop_instance_uid, instance.c.sha256)
        .where(instance.c.series_instance_uid == uid)
        .order_by(instance.c.sop_instance_uid)
    )
    return [(row.sop_instance_uid, row.sha256) for row in rows]


def counts(db: Connection) -> dict[str, int]:
    """Return the number of series per state, and under "instances" that of all instances."""
    rows = db.execute(select(series.c.state, func.count()).group_by(series.c.state))
    found = {str(state): int(number) for state, number in rows}
    found["instances"] = int(db.execute(select(func.count()).select_from(instance)).scalar_one())
    return found


def recent_refusals(db: Connection, limit: int) -> list[Row]:  # type: ignore[type-arg]
    """Return at most `limit` refusals, the newest first."""
    return list(db.execute(select(refusal).order_by(refusal.c.id.desc()).limit(limit)).all())
