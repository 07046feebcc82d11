"""Scores, findings, result objects and their deliveries in the ledger.

The deliveries are an outbox: an object and the rows that say where it must go are written in one
transaction, so that nothing is reported that is not sent and nothing is sent that is not recorded.
Their identity is the SOP Instance UID, which is derived from what the object shows: a stage that
runs again makes the same UIDs, and every insert here leaves alone what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, update
from sqlalchemy.dialects.sqlite import insert

from dicom_node import clock
from dicom_node.findings import Finding
from dicom_node.jobs import DeliveryState, JobState, Stage
from dicom_node.store.tables import delivery, finding, job, result, score, series
from dicom_node.store.tables import part as part_row
from dicom_node.store.worklist import worklist_query


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one revision of a series or part; with what it was made stands beside it."""

    series_instance_uid: str
    revision: int
    #: name of the series' content
    subject: str
    protocol: str
    #: of everything that shapes a token, a score or a finding
    fingerprint: str
    batch_version: str
    #: subjects in that batch
    n_reference: int
    subject_score: float
    #: of the reference subjects' own scores, 0..100
    percentile: float
    scored: datetime
    #: median over the tokens of the distance to the batch, not calibrated; None: not known
    raw_distance: float | None = None
    #: of its findings, calibrated units; None: the protocol's, of scores of an older version
    finding_threshold: float | None = None
    #: key of the volume of its series; empty: the only one
    part: str = ""


@dataclass(frozen=True, slots=True)
class ResultObject:
    """One DICOM object to be sent, written and durable."""

    sop_instance_uid: str
    #: "SEG", "SEG labelmap", "SEG occupancy", "SR", "PM", "PR", "SC" or "KO"
    kind: str
    series_instance_uid: str
    #: relative to the results folder
    file_name: str


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """One object on its way to one destination; `created` is when its time to live began."""

    sop_instance_uid: str
    score_id: int
    file_name: str
    attempts: int
    created: datetime


def record_score(db: Connection, entry: Score) -> int:
    """Keep the score of a revision; returns its number.

    The first one stays: a stage that is killed after this and runs again may meet another batch,
    and one revision has one score.

    Its batch must be frozen before.
    """
    values = {name: getattr(entry, name) for name in entry.__slots__}
    values["scored"] = clock.stamp(entry.scored)
    db.execute(insert(score).values(**values).on_conflict_do_nothing())
    return int(_score_row(db, entry.series_instance_uid, entry.revision, entry.part).id)


def get_score(db: Connection, uid: str, revision: int, part: str = "") -> tuple[int, Score]:
    """Return number and score of a revision, or a part of it; raises LookupError without one."""
    row = _score_row(db, uid, revision, part)
    fields = {name: getattr(row, name) for name in Score.__slots__}
    fields["scored"] = clock.parse(row.scored)
    return int(row.id), Score(**fields)


def _score_row(db: Connection, uid: str, revision: int, part: str) -> Row:  # type: ignore[type-arg]
    row = db.execute(
        select(score).where(
            score.c.series_instance_uid == uid,
            score.c.revision == revision,
            score.c.part == part,
        )
    ).one_or_none()
    if row is None:
        of_part = f" part {part}" if part else ""
        raise LookupError(f"series {uid} revision {revision}{of_part} has no score")
    return row


def record_results(
    db: Connection,
    score_id: int,
    findings: Sequence[Finding],
    objects: Sequence[ResultObject],
    destinations: Sequence[str],
    at: datetime,
) -> None:
    """Keep findings and objects and queue deliveries, in the caller's transaction.

    Parameters
    ----------
    objects
        Their files are durable.
    destinations
        Names from the configuration; none for a protocol in shadow mode.
    at
        When the deliveries become due; their time to live begins.
    """
    for entry in findings:
        values = {name: getattr(entry, name) for name in entry.__slots__}
        values.update(centroid_mm=list(entry.centroid_mm), peak_mm=list(entry.peak_mm))
        db.execute(insert(finding).values(score_id=score_id, **values).on_conflict_do_nothing())
    moment = clock.stamp(at)
    for item in objects:
        values = {name: getattr(item, name) for name in item.__slots__}
        db.execute(insert(result).values(score_id=score_id, **values).on_conflict_do_nothing())
        for destination in destinations:
            db.execute(
                insert(delivery)
                .values(
                    sop_instance_uid=item.sop_instance_uid,
                    destination=destination,
                    state=DeliveryState.QUEUED.value,
                    attempts=0,
                    created=moment,
                    not_before=moment,
                    updated=moment,
                )
                .on_conflict_do_nothing()
            )


def is_result(db: Connection, sop_instance_uid: str, series_instance_uid: str) -> bool:
    """Return whether an object or its series is one of those made here; either UID may be empty."""
    found = select(result.c.sop_instance_uid).where(
        (result.c.sop_instance_uid == sop_instance_uid)
        | (result.c.series_instance_uid == series_instance_uid)
    )
    return db.execute(found.limit(1)).first() is not None


def due_deliveries(db: Connection, destination: str, at: datetime, limit: int) -> list[DueDelivery]:
    """Return at most `limit` objects that are due at a destination, in the order of sending.

    Score by score, the oldest first, and within one in the order of their names, which is the order
    in which they were made: a reader meets the summary picture before the slices.
    """
    rows = db.execute(
        deliveries(destination, DeliveryState.QUEUED)
        .where(delivery.c.not_before <= clock.stamp(at))
        .order_by(result.c.score_id, result.c.file_name)
        .limit(limit)
    )
    return [delivery_of(row) for row in rows]


def deliveries(destination: str, state: DeliveryState) -> Select[Any]:
    """Return the query of a destination's deliveries in a state, with the files they are of."""
    return (
        select(delivery, result.c.file_name, result.c.score_id)
        .join(result, result.c.sop_instance_uid == delivery.c.sop_instance_uid)
        .where(delivery.c.destination == destination, delivery.c.state == state.value)
    )


def delivery_of(row: Row[Any]) -> DueDelivery:
    """Return a row of `deliveries` as values."""
    return DueDelivery(
        row.sop_instance_uid, row.score_id, row.file_name, row.attempts, clock.parse(row.created)
    )


def settle_delivery(
    db: Connection,
    destination: str,
    uids: Sequence[str],
    state: DeliveryState,
    at: datetime,
    *,
    of_state: DeliveryState = DeliveryState.QUEUED,
    reason: str | None = None,
    status: int | None = None,
    not_before: datetime | None = None,
) -> None:
    """Record the outcome of one attempt on those of the deliveries that are still in `of_state`.

    Parameters
    ----------
    state
        QUEUED tries again at `not_before`, STORED asks from then on whether the destination
        commits; DELIVERED and DEAD are ends.
    reason
        Why it was not delivered; None clears an earlier reason.
    status
        Of the C-STORE response (PS3.7 C.4); None leaves the last one.
    """
    values: dict[str, object] = {"state": state.value, "updated": clock.stamp(at), "reason": reason}
    values["attempts"] = delivery.c.attempts + 1
    # an answer to what was asked before does not concern what comes now
    values.update(transaction_uid=None, failure=None)
    if status is not None:
        values["status"] = status
    if not_before is not None:
        values["not_before"] = clock.stamp(not_before)
    db.execute(
        update(delivery)
        .where(
            delivery.c.destination == destination,
            delivery.c.sop_instance_uid.in_(uids),
            delivery.c.state == of_state.value,
        )
        .values(**values)
    )


def supersede_deliveries(
    db: Connection, uid: str, revision: int, at: datetime, part: str = ""
) -> None:
    """Stop what is still queued of revisions of the series before `revision`; the rest stays.

    Of a series of several volumes: what is queued of this part, and of what is no part any more. A
    part that is yet to be reported again, or cannot be, keeps what it had.
    """
    others = select(part_row.c.key).where(
        part_row.c.series_instance_uid == uid,
        part_row.c.revision == revision,
        part_row.c.key != part,
    )
    old = (
        select(result.c.sop_instance_uid)
        .join(score, score.c.id == result.c.score_id)
        .where(
            score.c.series_instance_uid == uid,
            score.c.revision < revision,
            score.c.part.not_in(others),
        )
    )
    db.execute(
        update(delivery)
        .where(delivery.c.sop_instance_uid.in_(old), delivery.c.state == DeliveryState.QUEUED.value)
        .values(state=DeliveryState.SUPERSEDED.value, updated=clock.stamp(at))
    )


def retry_dead(db: Connection, at: datetime) -> int:
    """Queue every dead delivery again, with its whole time to live; returns how many."""
    moment = clock.stamp(at)
    return db.execute(
        update(delivery)
        .where(delivery.c.state == DeliveryState.DEAD.value)
        .values(
            state=DeliveryState.QUEUED.value,
            attempts=0,
            created=moment,
            not_before=moment,
            updated=moment,
            transaction_uid=None,
            failure=None,
            committed=None,
            found=None,
        )
    ).rowcount


def delivery_counts(db: Connection) -> dict[tuple[str, str], int]:
    """Return the number of deliveries per (destination, state)."""
    rows = db.execute(
        select(delivery.c.destination, delivery.c.state, func.count()).group_by(
            delivery.c.destination, delivery.c.state
        )
    )
    return {(destination, state): int(number) for destination, state, number in rows}


def delivery_faults(db: Connection, limit: int) -> list[Row]:  # type: ignore[type-arg]
    """Return why something is not delivered, or not found again: at most `limit`, the newest first.

    One row per ``destination``, ``state`` and ``reason``: ``n`` objects, ``updated`` of the newest.
    """
    rows = db.execute(
        select(
            delivery.c.destination,
            delivery.c.state,
            delivery.c.reason,
            func.count().label("n"),
            func.max(delivery.c.updated).label("updated"),
        )
        .where(delivery.c.reason.is_not(None))
        .group_by(delivery.c.destination, delivery.c.state, delivery.c.reason)
        .order_by(func.max(delivery.c.updated).desc())
        .limit(limit)
    )
    return list(rows.all())


def worklist(db: Connection, limit: int) -> list[Row]:  # type: ignore[type-arg]
    """Return at most `limit` series or parts, the newest first, as the page lists them."""
    newest_first = (
        *(series.c.last_received.desc(), series.c.series_instance_uid),
        part_row.c.number,
    )
    return list(db.execute(worklist_query().order_by(*newest_first).limit(limit)).all())


def findings_of(db: Connection, score_id: int) -> list[Finding]:
    """Return the findings of a score, rank 1 (the highest) first."""
    rows = db.execute(
        select(finding).where(finding.c.score_id == score_id).order_by(finding.c.rank)
    )
    return [
        Finding(
            row.rank,
            row.volume_ml,
            row.max_score,
            row.mean_score,
            tuple(row.centroid_mm),
            tuple(row.peak_mm),
            row.diameter_mm,
        )
        for row in rows
    ]


def results_of(db: Connection, score_id: int) -> list[ResultObject]:
    """Return the objects of a score, in the order they were made."""
    rows = db.execute(
        select(result).where(result.c.score_id == score_id).order_by(result.c.file_name)
    )
    return [
        ResultObject(row.sop_instance_uid, row.kind, row.series_instance_uid, row.file_name)
        for row in rows
    ]


def earlier_score(db: Connection, uid: str, revision: int, part: str = "") -> int | None:
    """Return the number of the latest score of a series or part before `revision`, or None."""
    found = (
        select(score.c.id)
        .where(
            score.c.series_instance_uid == uid,
            score.c.revision < revision,
            score.c.part == part,
        )
        .order_by(score.c.revision.desc())
        .limit(1)
    )
    number = db.execute(found).scalar_one_or_none()
    return None if number is None else int(number)


def series_row(db: Connection, uid: str, part: str = "") -> Row | None:  # type: ignore[type-arg]
    """Return the worklist's row of one series or part, None when it is unknown.

    Of a series of several volumes each part has a row, and the whole has none.
    """
    return next((row for row in series_rows(db, uid) if row.part == part), None)


def series_rows(db: Connection, uid: str) -> list[Row]:  # type: ignore[type-arg]
    """Return the worklist's rows of one series: one, or one per part in order."""
    of_series = worklist_query().where(series.c.series_instance_uid == uid)
    return list(db.execute(of_series.order_by(part_row.c.number)).all())


def score_identity(db: Connection, score_id: int) -> tuple[str, str, str]:
    """Return (subject, fingerprint, batch version): what names the folder of its products."""
    row = db.execute(
        select(score.c.subject, score.c.fingerprint, score.c.batch_version).where(
            score.c.id == score_id
        )
    ).one()
    return row.subject, row.fingerprint, row.batch_version


def deliveries_of(db: Connection, score_id: int) -> list[Row]:  # type: ignore[type-arg]
    """Return how many (``n``) of a score's objects are in which state on their way.

    Per ``kind``, ``destination`` and ``state``; of several reasons ``reason`` is one. How many of
    them the destination commits to is ``n_committed``, how many were found there ``n_found``.
    """
    rows = db.execute(
        select(
            result.c.kind,
            delivery.c.destination,
            delivery.c.state,
            func.max(delivery.c.reason).label("reason"),
            func.count().label("n"),
            func.count(delivery.c.committed).label("n_committed"),
            func.count(delivery.c.found).label("n_found"),
        )
        .join(delivery, delivery.c.sop_instance_uid == result.c.sop_instance_uid)
        .where(result.c.score_id == score_id)
        .group_by(result.c.kind, delivery.c.destination, delivery.c.state)
        .order_by(result.c.kind.desc(), delivery.c.destination)
    )
    return list(rows.all())


def progress_of(db: Connection) -> tuple[int, int]:
    """Return the number of series whose results are all delivered, and of those that are at an end.

    At an end is also what was rejected or failed, and what a dead delivery holds up. A series that
    ended in one revision and in the next one otherwise counts twice. A series of several volumes is
    at an end when each of them is, and delivered when those are that could be scored.
    """
    with_deliveries = (
        select(score.c.series_instance_uid)
        .join(result, result.c.score_id == score.c.id)
        .join(delivery, delivery.c.sop_instance_uid == result.c.sop_instance_uid)
    )
    under_way = (DeliveryState.QUEUED.value, DeliveryState.STORED.value)
    open_deliveries = with_deliveries.where(delivery.c.state.in_(under_way))
    dead_deliveries = with_deliveries.where(delivery.c.state == DeliveryState.DEAD.value)
    reported = select(job.c.series_instance_uid).where(
        job.c.stage == list(Stage)[-1].value, job.c.state == JobState.DONE.value
    )
    part_job = select(job.c.series_instance_uid).where(job.c.part != "")
    busy = [JobState.QUEUED.value, JobState.RUNNING.value, JobState.WAITING.value]
    open_parts = part_job.where(job.c.state.in_(busy))
    reported_parts = part_job.where(job.c.series_instance_uid.in_(reported))
    stopped = select(func.count(job.c.series_instance_uid.distinct())).where(
        job.c.state.in_([JobState.REJECTED.value, JobState.FAILED.value]),
        job.c.series_instance_uid.not_in(open_parts),
        job.c.series_instance_uid.not_in(reported_parts),
    )
    settled = select(func.count(series.c.series_instance_uid)).where(
        series.c.series_instance_uid.in_(reported),
        series.c.series_instance_uid.not_in(open_deliveries),
        series.c.series_instance_uid.not_in(open_parts),
    )
    delivered = settled.where(series.c.series_instance_uid.not_in(dead_deliveries))
    ended = db.execute(settled).scalar_one() + db.execute(stopped).scalar_one()
    return int(db.execute(delivered).scalar_one()), int(ended)
