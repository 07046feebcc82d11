"""Jobs in the ledger: a queue in which a job can neither be lost nor be had twice.

Every change of state is one UPDATE that names the expected old states
(:data:`dicom_node.jobs.TRANSITIONS`): whoever comes second changes nothing and is told so. A worker
holds a job by a lease that it renews; what it leaves behind when it dies is due again when the
lease is over. Every function takes the moment from its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, case, func, select, update
from sqlalchemy.dialects.sqlite import insert

from dicom_node import clock
from dicom_node.jobs import TRANSITIONS, Job, JobState, Stage
from dicom_node.store.tables import job

#: finish what is nearly done before starting something new
_STAGE_ORDER = case({stage.value: place for place, stage in enumerate(Stage)}, value=job.c.stage)

#: reason of a job whose attempts all ended without an outcome
_WORKER_DIED = "the worker ended without a word at every attempt (killed, or out of memory)"


def enqueue(
    db: Connection,
    uid: str,
    revision: int,
    stage: Stage,
    protocol: str | None,
    at: datetime,
    part: str = "",
    priority: int = 0,
) -> None:
    """Queue one stage, due from `at` on; a second call for the same one changes nothing."""
    moment = clock.stamp(at)
    db.execute(
        insert(job)
        .values(
            series_instance_uid=uid,
            revision=revision,
            part=part,
            stage=stage.value,
            state=JobState.QUEUED.value,
            priority=priority,
            protocol=protocol,
            attempts=0,
            not_before=moment,
            created=moment,
            updated=moment,
        )
        .on_conflict_do_nothing()
    )


def enqueue_first(db: Connection, uid: str, revision: int, at: datetime, priority: int = 0) -> None:
    """Queue the first stage of a complete series."""
    enqueue(db, uid, revision, next(iter(Stage)), None, at, priority=priority)


def claim(db: Connection, worker: str, lease_s: float, at: datetime) -> Job | None:
    """Take the next due job for `worker`, this attempt counted; None when nothing is due.

    Of the due jobs the one of highest priority goes first, then the one of the latest stage, then
    the oldest: what is nearly done is finished before something new is begun.

    Parameters
    ----------
    db
        A write transaction: its lock is what keeps two workers from one job.
    worker
        A name that no other process has.
    """
    moment = clock.stamp(at)
    found = db.execute(
        select(job.c.id)
        .where(job.c.state == JobState.QUEUED.value, job.c.not_before <= moment)
        .order_by(job.c.priority.desc(), _STAGE_ORDER.desc(), job.c.id)
        .limit(1)
    ).scalar_one_or_none()
    if found is None:
        return None
    # counted now: an attempt that kills the worker leaves no later moment to count it
    lease = clock.stamp(at + timedelta(seconds=lease_s))
    move(db, found, JobState.RUNNING, at, worker=worker, lease_until=lease, count_attempt=True)
    return get(db, found)


def move(
    db: Connection,
    number: int,
    state: JobState,
    at: datetime,
    *,
    owner: str | None = None,
    count_attempt: bool = False,
    **values: Any,  # noqa: ANN401 - column values of several types
) -> bool:
    """Change a job's state where TRANSITIONS allows it; returns whether it did.

    Parameters
    ----------
    owner
        Only while this worker holds the job; None asks for no one.
    **values
        Further columns to set, written as the table keeps them (moments as text).
    """
    found = (job.c.id == number) & job.c.state.in_(_before(state))
    if owner is not None:
        found &= job.c.worker == owner
    if count_attempt:
        values["attempts"] = job.c.attempts + 1
    changed = db.execute(
        update(job).where(found).values(state=state.value, updated=clock.stamp(at), **values)
    ).rowcount
    return bool(changed)


def let_go(
    db: Connection,
    number: int,
    worker: str,
    state: JobState,
    at: datetime,
    **values: Any,  # noqa: ANN401 - column values of several types
) -> bool:
    """Give a job back in a new state; returns whether it was still this worker's.

    It is not when its lease was over and it was taken back, or when late instances superseded it.
    """
    return move(db, number, state, at, owner=worker, worker=None, **values)


def _before(state: JobState) -> list[str]:
    """Return the states from which TRANSITIONS leads to `state`."""
    return [old.value for old, new in TRANSITIONS.items() if state in new]


def renew_lease(db: Connection, number: int, worker: str, lease_s: float, at: datetime) -> bool:
    """Prolong the lease of a running job, from `at` on; returns whether it is still `worker`'s."""
    changed = db.execute(
        update(job)
        .where(job.c.id == number, job.c.worker == worker, job.c.state == JobState.RUNNING.value)
        .values(lease_until=clock.stamp(at + timedelta(seconds=lease_s)))
    ).rowcount
    return bool(changed)


def requeue_expired(db: Connection, max_attempts: int, at: datetime) -> int:
    """Queue again what a dead worker left running; returns how many jobs it left.

    A job that has used up its attempts fails instead: it may well be what kills the workers.
    """
    moment = clock.stamp(at)
    used_up = job.c.attempts >= max_attempts
    return db.execute(
        update(job)
        .where(job.c.state == JobState.RUNNING.value, job.c.lease_until < moment)
        .values(
            state=case((used_up, JobState.FAILED.value), else_=JobState.QUEUED.value),
            reason=case((used_up, _WORKER_DIED), else_=job.c.reason),
            fault=case((used_up, "WorkerDied"), else_=job.c.fault),
            worker=None,
            updated=moment,
        )
    ).rowcount


def enqueue_parts(
    db: Connection,
    uid: str,
    revision: int,
    parts: Sequence[str],
    at: datetime,
    priority: int = 0,
) -> None:
    """Queue the first stage of each part of a series that holds several volumes."""
    for key in parts:
        enqueue(db, uid, revision, next(iter(Stage)), None, at, key, priority)


def set_protocol(db: Connection, uid: str, revision: int, protocol: str, part: str = "") -> None:
    """Record which protocol claims the series whose job runs; it may be another than before."""
    running = (job.c.series_instance_uid == uid) & (job.c.revision == revision)
    running &= job.c.part == part
    running &= job.c.state == JobState.RUNNING.value
    db.execute(update(job).where(running).values(protocol=protocol))


def release_waiting(db: Connection, protocol: str, at: datetime) -> int:
    """Queue what waits for `protocol`'s batch, with all its attempts; returns how many."""
    moment = clock.stamp(at)
    return db.execute(
        update(job)
        .where(job.c.state == JobState.WAITING.value, job.c.protocol == protocol)
        .values(state=JobState.QUEUED.value, not_before=moment, attempts=0, updated=moment)
    ).rowcount


def reject_waiting(
    db: Connection, protocol: str, reason: str, fault: str, at: datetime
) -> list[tuple[str, str]]:
    """Reject what waits for the batch of a protocol that is no more; returns (series, part)."""
    waiting = (job.c.state == JobState.WAITING.value) & (job.c.protocol == protocol)
    wanted = select(job.c.id, job.c.series_instance_uid, job.c.part)
    found = db.execute(wanted.where(waiting)).all()
    for row in found:
        move(db, row.id, JobState.REJECTED, at, reason=reason, fault=fault, protocol=None)
    return [(row.series_instance_uid, row.part) for row in found]


def n_waiting(db: Connection, protocol: str) -> int:
    """Return how many jobs wait for `protocol`'s batch."""
    waiting = (job.c.state == JobState.WAITING.value) & (job.c.protocol == protocol)
    return int(db.execute(select(func.count()).select_from(job).where(waiting)).scalar_one())


def supersede(db: Connection, uid: str, at: datetime) -> None:
    """End every unfinished job of the series; the outcome of a running one is not recorded."""
    db.execute(
        update(job)
        .where(job.c.series_instance_uid == uid, job.c.state.in_(_before(JobState.SUPERSEDED)))
        .values(state=JobState.SUPERSEDED.value, updated=clock.stamp(at))
    )


def retry_failed(db: Connection, at: datetime) -> int:
    """Queue every failed or rejected job again, with all its attempts; returns how many."""
    moment = clock.stamp(at)
    return db.execute(
        update(job)
        .where(job.c.state.in_([JobState.FAILED.value, JobState.REJECTED.value]))
        .values(state=JobState.QUEUED.value, attempts=0, not_before=moment, updated=moment)
    ).rowcount


def get(db: Connection, number: int) -> Job:
    """Return the job of this number, which exists."""
    return _from_row(db.execute(select(job).where(job.c.id == number)).one())


def unfinished(db: Connection, limit: int) -> list[Job]:
    """Return at most `limit` jobs that need a look: failed, rejected or waiting, newest first."""
    states = [JobState.FAILED.value, JobState.REJECTED.value, JobState.WAITING.value]
    rows = db.execute(
        select(job).where(job.c.state.in_(states)).order_by(job.c.updated.desc()).limit(limit)
    )
    return [_from_row(row) for row in rows]


def counts(db: Connection) -> dict[str, int]:
    """Return the number of jobs per stage and state, under keys like "score waiting"."""
    rows = db.execute(
        select(job.c.stage, job.c.state, func.count()).group_by(job.c.stage, job.c.state)
    )
    return {f"{stage} {state}": int(number) for stage, state, number in rows}


def _from_row(row: Row) -> Job:  # type: ignore[type-arg]
    return Job(
        id=row.id,
        series_instance_uid=row.series_instance_uid,
        revision=row.revision,
        stage=Stage(row.stage),
        state=JobState(row.state),
        protocol=row.protocol,
        attempts=row.attempts,
        reason=row.reason,
        updated=clock.parse(row.updated),
        part=row.part,
        priority=row.priority,
    )
